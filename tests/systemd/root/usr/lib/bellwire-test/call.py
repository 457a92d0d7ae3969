#!/usr/bin/python3
"""Calls org.bellwire.Push and prints the answer: a line of JSON with "body", or with "error" and "why".

    call.py session|system INTERFACE.METHOD [SIGNATURE ARGUMENTS-IN-JSON]
"""

import json
import sys

from jeepney import DBusAddress, DBusErrorResponse, new_method_call
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

bus, method, *arguments = sys.argv[1:]
interface, method = method.split(".")
signature, body = (arguments[0], json.loads(arguments[1])) if arguments else (None, ())
push = DBusAddress("/org/bellwire/Push", bus_name="org.bellwire.Push", interface=f"org.bellwire.{interface}")
connection = open_dbus_connection(bus.upper())
try:
    call = new_method_call(push, method, signature, tuple(body))
    answer = {"body": unwrap_msg(connection.send_and_get_reply(call, timeout=30))}
except DBusErrorResponse as error:
    answer = {"error": error.name, "why": error.data}
print(json.dumps(answer))
