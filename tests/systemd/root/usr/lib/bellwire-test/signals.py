#!/usr/bin/python3
"""Prints "listening", and then each signal of this name on the session's bus: a line of JSON, its arguments.

    signals.py MEMBER
"""

import json
import sys

from jeepney import MatchRule, MessageType
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

rule = MatchRule(type=MessageType.signal, path="/org/bellwire/Push", member=sys.argv[1])
bus = open_dbus_connection("SESSION")
with bus.filter(rule) as signals:
    unwrap_msg(bus.send_and_get_reply(message_bus.AddMatch(rule)))
    print("listening", flush=True)
    while True:
        print(json.dumps(bus.recv_until_filtered(signals).body), flush=True)
