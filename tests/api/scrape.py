"""Reads metrics as Prometheus does, by the parser of its own client, from standard input.

Prints a JSON list of [name, type, labels, value]: a line for each metric, its labels without those that
the type brings, and the sum of its counters or gauges, or of the counts of its histograms.
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

SUFFIX = {"counter": "_total", "info": "_info"}

rows = []
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation, family
    labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
    counted = "_count" if family.type == "histogram" else SUFFIX.get(family.type, "")
    value = sum(sample.value for sample in family.samples if sample.name == family.name + counted)
    rows.append([family.name + SUFFIX.get(family.type, ""), family.type, labels, value])
print(json.dumps(rows))
