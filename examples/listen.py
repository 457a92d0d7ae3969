#!/usr/bin/env python3
"""A whole app: it registers, prints its regId, and then its messages as they come.

    python3 listen.py APP-ID

Its agent is bellwired on the session bus. Needs jeepney (Debian's python3-jeepney).
"""
import sys

from jeepney import DBusAddress, DBusErrorResponse, MatchRule, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

AGENT = DBusAddress("/org/bellwire/Push", "org.bellwire.Push", "org.bellwire.Push1")


def main(app):
    bus = open_dbus_connection("SESSION")

    def call(method, signature, *arguments):
        return unwrap_msg(bus.send_and_get_reply(new_method_call(AGENT, method, signature, arguments)))

    # Messages may come while we wait for an answer: the filter keeps them.
    with bus.filter(MatchRule(type="method_call", interface="org.bellwire.App1"), bufsize=16) as messages:
        call("Connect", "soa{sv}", app, "/listen", {})
        print("regId", *call("Register", "s", app), flush=True)
        while True:
            request = bus.recv_until_filtered(messages)
            _, message_id, members = request.body
            # Here a real app puts the message where it is safe. The answer is the delivery.
            print(message_id, {name: value for name, (_, value) in members.items()}, flush=True)
            bus.send(new_method_return(request))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except DBusErrorResponse as error:
        sys.exit(f"{error.name}: {error.data[0]}")
    except KeyboardInterrupt:
        pass
