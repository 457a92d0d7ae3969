"""An app that speaks only the first version of UnifiedPush, in Python with jeepney: it writes down, a line of
JSON each, when it was started and what it was called with, and ends when nothing comes for a while.

    v1_connector.py SERVICE LOG [IDLE-SECONDS [DIE-AFTER]]

DIE-AFTER: it ends instead of answering its message of that number. Lines on its standard input are commands:
`register TOKEN` and `unregister TOKEN`. Nothing of Bellwire's code is used here: the specification has to be
enough.
"""
import json
import os
import select
import sys

from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_error, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import unwrap_msg

DISTRIBUTOR = "org.unifiedpush.Distributor."
CALLS = {"Message": ("token", "message", "id"), "NewEndpoint": ("token", "endpoint"), "Unregistered": ("token",)}


class Connector:
    def __init__(self, service, log, die_after):
        self.service, self.log, self.die_after, self.messages = service, log, die_after, 0
        self.bus, self.early = open_dbus_connection("SESSION"), []
        self.note(event="started", pid=os.getpid())
        # Calls may come as soon as the name is there: `ask` keeps what is not its answer.
        assert self.ask(message_bus.RequestName(service)) == (1,)

    def note(self, **line):
        with open(self.log, "a") as file:
            file.write(json.dumps(line) + "\n")

    def ask(self, message):
        serial = next(self.bus.outgoing_serial)
        self.bus.send(message, serial=serial)
        while True:
            received = self.bus.receive(timeout=30)
            if received.header.fields.get(HeaderFields.reply_serial) == serial:
                return unwrap_msg(received)
            self.early.append(received)

    def distributor(self, method, signature, *arguments):
        names = [name for name in self.ask(message_bus.ListNames())[0] if name.startswith(DISTRIBUTOR)]
        assert len(names) == 1, names
        address = DBusAddress("/org/unifiedpush/Distributor", names[0], "org.unifiedpush.Distributor1")
        return self.ask(new_method_call(address, method, signature, arguments))

    def command(self, line):
        word, token = line.split()
        if word == "register":
            result = self.distributor("Register", "sss", self.service, token, "a connector of the first version")
            self.note(event="registered", result=result)
        else:
            self.note(event="unregistered", result=self.distributor("Unregister", "s", token))

    def answer(self, call):
        fields = call.header.fields
        if call.header.message_type is not MessageType.method_call:
            return
        member = fields[HeaderFields.member]
        if fields.get(HeaderFields.interface) != "org.unifiedpush.Connector1" or member not in CALLS:
            self.bus.send(new_error(call, "org.freedesktop.DBus.Error.UnknownInterface", "s", ("only Connector1",)))
            return
        assert fields[HeaderFields.path] == "/org/unifiedpush/Connector", fields
        told = dict(zip(CALLS[member], call.body))
        if "message" in told:
            told["message"] = bytes(told["message"]).hex()
            self.messages += 1
            if self.messages == self.die_after:
                self.note(event="died", **told)
                os._exit(1)
        # Noted after the answer: whoever reads it may end this program.
        self.bus.send(new_method_return(call))
        self.note(event=member, **told)

    def answer_all(self):
        """Also what was read already, of which `select` knows nothing."""
        while self.early:
            self.answer(self.early.pop(0))
        try:
            while True:
                self.answer(self.bus.receive(timeout=0))
        except TimeoutError:
            pass

    def run(self, idle):
        inputs = [self.bus.sock, sys.stdin]
        while True:
            self.answer_all()
            ready, _, _ = select.select(inputs, [], [], idle)
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if line:
                    self.command(line)
                else:
                    inputs.remove(sys.stdin)
            elif not ready:
                self.note(event="ended")
                return


if __name__ == "__main__":
    idle = float(sys.argv[3]) if len(sys.argv) > 3 else 3600
    Connector(sys.argv[1], sys.argv[2], int(sys.argv[4]) if len(sys.argv) > 4 else None).run(idle)
