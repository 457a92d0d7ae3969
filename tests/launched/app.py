"""An app that the daemon starts, in Python with jeepney: it writes down why it was started and what
it is handed, a line of JSON each, takes its messages, and ends.

    python app.py APP-ID LOG [BUS-NAME]

With a bus name it takes that name, as an app does that the bus activates, and listens to
org.freedesktop.Application. It ends when it was handed the message that is called `last`, or when
the daemon started it for another reason than a message.
"""
import json
import os
import sys

from jeepney import DBusAddress, DBusErrorResponse, HeaderFields, MatchRule, MessageType, message_bus, new_error, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

AGENT = DBusAddress("/org/bellwire/Push", "org.bellwire.Push", "org.bellwire.Push1")


def main(app, log, bus_name=None):
    def note(**line):
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")

    environment = {name: value for name, value in os.environ.items() if name.startswith("BELLWIRE_")}
    note(event="started", pid=os.getpid(), environment=environment)
    bus = open_dbus_connection("SESSION")

    def call(method, signature, *arguments):
        return unwrap_msg(bus.send_and_get_reply(new_method_call(AGENT, method, signature, arguments)))

    def connect():
        """Connects; without a daemon that is done when one comes."""
        try:
            call("Connect", "soa{sv}", app, "/app", {})
            return call("GetLaunch", "s", app)
        except DBusErrorResponse as error:
            note(event="error", name=error.name)

    daemon = MatchRule(type="signal", sender="org.freedesktop.DBus", member="NameOwnerChanged")
    daemon.add_arg_condition(0, AGENT.bus_name)
    unwrap_msg(bus.send_and_get_reply(message_bus.AddMatch(daemon)))
    with bus.filter(MatchRule(), bufsize=64) as calls:
        if bus_name:
            unwrap_msg(bus.send_and_get_reply(message_bus.RequestName(bus_name)))
        reason, message_id = connect() or ("", "")
        note(event="reason", launch_type=reason, id=message_id)
        over = reason == "registration_change"
        while not over:
            request = bus.recv_until_filtered(calls)
            interface = request.header.fields.get(HeaderFields.interface)
            member = request.header.fields.get(HeaderFields.member)
            if (interface, member) == ("org.bellwire.App1", "Message"):
                _, _, members = request.body
                members = {name: value for name, (_, value) in members.items()}
                note(event="message", pid=os.getpid(), members=members)
                bus.send(new_method_return(request))
                over = members.get("session_info") == "last"
            elif (interface, member) == ("org.freedesktop.Application", "Activate"):
                platform = {name: value for name, (_, value) in request.body[0].items()}
                note(event="activated", platform=platform)
                bus.send(new_method_return(request))
            elif member == "NameOwnerChanged":
                # The daemon was started anew, and knows of no connection.
                if request.body[0] == AGENT.bus_name and request.body[2]:
                    connect()
            elif request.header.message_type == MessageType.method_call:
                bus.send(new_error(request, "org.freedesktop.DBus.Error.UnknownMethod"))
        # What the bus has answered now has been sent before: the last reply is on its way.
        call("Disconnect", "s", app)
    note(event="ended", pid=os.getpid())


if __name__ == "__main__":
    main(*sys.argv[1:])
