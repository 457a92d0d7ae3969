#!/usr/bin/env python3
"""A whole app: all of org.bellwire.Push(7) that an app needs.

    python3 app.py APP-ID            registers, takes what came while it was away, then its messages
    python3 app.py APP-ID --leave    deregisters: the regId is dead for good

Its agent is bellwired on the session bus. Needs jeepney (Debian's python3-jeepney).
"""
import sys
from collections import deque

from jeepney import (
    DBusAddress, DBusErrorResponse, HeaderFields, MatchRule, message_bus, new_method_call, new_method_return)
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

PUSH = DBusAddress("/org/bellwire/Push", "org.bellwire.Push", "org.bellwire.Push1")


def show(word, members):
    print(word, *(f"{name}={value!r}" for name, (_, value) in members.items()))


def main(app, *options):
    bus, inbox = open_dbus_connection("SESSION"), deque()

    def call(method, signature="s", *more):
        return unwrap_msg(bus.send_and_get_reply(new_method_call(PUSH, method, signature, (app, *more))))

    def begin():
        # hold-unread: what came while the app was away waits until it asks.
        print("state", call("Connect", "soa{sv}", "/app", {"hold-unread": ("b", True)})[0])
        if "--leave" in options:
            call("Deregister")
            sys.exit()
        call("Register")
        print("regId", *call("GetRegistrationId"))  # for the app's own server
        print("launch", *call("GetLaunch"))  # why the daemon started the app, if it did
        while message := call("TakeUnread")[0]:
            show("unread", message)
        print("badge", *call("GetBadge"))
        call("SetBadge", "su", 0)  # the user has seen it all
        print("badge", *call("GetBadge"))
        print("waiting", *call("RequestUnread"))  # the other way to them: as calls of Message

    bus.filter(MatchRule(), queue=inbox)  # keeps what comes while the app waits for an answer
    for signals in ("interface='org.bellwire.Push1'", "member='NameOwnerChanged',arg0='org.bellwire.Push'"):
        unwrap_msg(bus.send_and_get_reply(message_bus.AddMatch("type='signal'," + signals)))
    begin()
    while True:
        event = bus.recv_until_filtered(inbox)
        name = event.header.fields[HeaderFields.member]
        if name == "Message":
            # Here a real app puts the message where it is safe, unless it says `again` and its id is
            # there already. The answer is the delivery.
            show("message", event.body[2])
            bus.send(new_method_return(event))
        elif name == "NameOwnerChanged" and event.body[2]:
            begin()  # the daemon was started anew and does not know the app yet
        elif name in ("BadgeChanged", "RegistrationChanged"):
            print(name, *event.body)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        main(*sys.argv[1:])
    except DBusErrorResponse as error:
        sys.exit(f"{error.name}: {error.data[0]}")
    except KeyboardInterrupt:
        pass
