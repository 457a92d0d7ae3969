#!/usr/bin/env python3
"""A sender of Web Push that reads its receipts as server-sent events, by the rules of the WHATWG for them.

    events.py URL [LAST-EVENT-ID]

It prints `open` when the stream is, a line of JSON for each event, and `end` when the server ends it in order.
"""

import http.client
import json
import sys
from urllib.parse import urlsplit

url, *last = sys.argv[1:]
parts = urlsplit(url)
headers = {"Accept": "text/event-stream"}
if last:
    headers["Last-Event-ID"] = last[0]
connection = http.client.HTTPConnection(parts.netloc, timeout=60)
target = parts.path + ("?" + parts.query if parts.query else "")
connection.request("GET", target, headers=headers)
answer = connection.getresponse()
assert answer.status == 200, (answer.status, answer.read())
assert answer.headers["Content-Type"].split(";")[0] == "text/event-stream", answer.headers
assert answer.headers["Cache-Control"], answer.headers
print("open", flush=True)

data, event_id, kind = [], "", ""
while True:
    # A body that breaks off is an exception here.
    line = answer.readline()
    if not line:
        break
    line = line.decode("utf-8").rstrip("\n").rstrip("\r")
    if line == "":
        if data:
            event = {"type": kind or "message", "id": event_id, "data": json.loads("\n".join(data))}
            print(json.dumps(event), flush=True)
        data, kind = [], ""
        continue
    if line.startswith(":"):
        continue
    field, _, value = line.partition(":")
    value = value.removeprefix(" ")
    if field == "data":
        data.append(value)
    elif field == "id":
        event_id = value
    elif field == "event":
        kind = value
    else:
        assert field == "retry" and value.isdigit(), line
print("end", flush=True)
