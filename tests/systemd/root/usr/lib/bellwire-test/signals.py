#!/usr/bin/python3
"""Prints "listening", and then each signal of these names: a line of JSON, its name and its arguments.

    signals.py session|system MEMBER...
"""

import json
import sys

from jeepney import HeaderFields, MatchRule, MessageType
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

rule = MatchRule(type=MessageType.signal, path="/org/bellwire/Push")
bus = open_dbus_connection(sys.argv[1].upper())
with bus.filter(rule, bufsize=100) as signals:
    unwrap_msg(bus.send_and_get_reply(message_bus.AddMatch(rule)))
    print("listening", flush=True)
    while True:
        signal = bus.recv_until_filtered(signals)
        member = signal.header.fields[HeaderFields.member]
        if member in sys.argv[2:]:
            print(json.dumps([member, signal.body]), flush=True)
