#!/usr/bin/python3
"""An app by the D-Bus library jeepney. It connects, registers if it has to, takes every message, and
writes down all that happens to it, a line of JSON each, in /run/bellwire-test/APP-ID.

    app.py APP-ID [--system] [--name BUS-NAME]

With a name it is a D-Bus activatable application: it takes the name and has org.freedesktop.Application.
In a unit of Type=notify it is ready once it has a message. Other words, such as a desktop file's
files, are ignored.
"""

import json
import os
import socket
import sys

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, new_error, new_method_call, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

PUSH = DBusAddress("/org/bellwire/Push", bus_name="org.bellwire.Push", interface="org.bellwire.Push1")
PATH = "/app"
APP, *OPTIONS = sys.argv[1:]
NAME = OPTIONS[OPTIONS.index("--name") + 1] if "--name" in OPTIONS else None
# Desktop Entry Specification, "D-Bus Activation".
APPLICATION = "/" + NAME.replace(".", "/").replace("-", "_") if NAME else None


def note(event, **more):
    with open(f"/run/bellwire-test/{APP}", "a") as file:
        file.write(json.dumps({"event": event, "pid": os.getpid(), **more}, default=repr) + "\n")


def values(dictionary):
    return {name: value for name, (_, value) in dictionary.items()}


def control_group():
    """systemd's own: cgroups(7)."""
    with open("/proc/self/cgroup") as file:
        groups = dict(line.strip().split(":", 2)[1:] for line in file)
    return groups.get("name=systemd") or groups[""]


def answer(call):
    field = call.header.fields.get
    what = (field(HeaderFields.path), field(HeaderFields.interface), field(HeaderFields.member))
    if what == (PATH, "org.bellwire.App1", "Message"):
        note("message", arguments=call.body[:2], members=values(call.body[2]))
    elif what == (APPLICATION, "org.freedesktop.Application", "Activate"):
        note("activated", platform=values(call.body[0]))
    else:
        note("stray", what=what)
        return new_error(call, "org.freedesktop.DBus.Error.UnknownMethod")
    return new_method_return(call)


def ready():
    """Tells systemd, if it waits for that: sd_notify(3)."""
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(b"READY=1", os.environ.pop("NOTIFY_SOCKET"))


def main():
    environment = {name: value for name, value in os.environ.items() if name.startswith("BELLWIRE_")}
    note("started", group=control_group(), environment=environment, folder=os.getcwd())
    bus = open_dbus_connection("SYSTEM" if "--system" in OPTIONS else "SESSION")

    def ask(method, signature="s", *more):
        return unwrap_msg(bus.send_and_get_reply(new_method_call(PUSH, method, signature, (APP, *more))))

    # Calls may come while we wait for an answer: the filter keeps them.
    with bus.filter(MatchRule(type=MessageType.method_call), bufsize=16) as calls:
        if NAME:
            assert unwrap_msg(bus.send_and_get_reply(message_bus.RequestName(NAME))) == (1,)
        state, reg_id = ask("Connect", "soa{sv}", PATH, {})
        note("connected", state=state, launch=ask("GetLaunch"))
        if state == "unregistered":
            (reg_id,) = ask("Register")
        note("registered", reg_id=reg_id)
        while True:
            bus.send(answer(bus.recv_until_filtered(calls)))
            ready()


try:
    main()
except Exception as error:
    note("failed", why=repr(error))
    raise
