"""An app in Python, by the D-Bus library jeepney, and curl as its application server.

Nothing of Bellwire's code is used here: what app writers read in dbus/*.xml and application server
writers in Tizen's push server guide has to be enough. Each step fails with an AssertionError or a
TimeoutError.

usage: app.py BUS-ADDRESS API-URL APP-ID, with the app's secret in APP_SECRET
"""

import json
import os
import subprocess
import sys
import time
from collections import deque

from jeepney import DBusAddress, MatchRule, MessageType, new_error, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection

DEADLINE = 30
PATH = "/org/example/PythonApp"
PUSH = DBusAddress("/org/bellwire/Push", bus_name="org.bellwire.Push", interface="org.bellwire.Push1")
MEMBERS = {"id": "s", "app": "s", "accepted_ms": "x", "received_ms": "x", "expires_ms": "x", "app_data": "s",
           "payload": "ay", "message": "s", "sender": "s", "request_id": "s", "session_info": "s", "type": "x",
           "time_stamp": "x", "dropped": "u", "again": "b"}


class DBusError(Exception):
    def __init__(self, reply):
        self.name = reply.header.fields[4]
        super().__init__(self.name, reply.body)


class App:
    """One connection to the bus that is an app."""

    def __init__(self, bus, app):
        self.bus, self.app = open_dbus_connection(bus), app
        self.calls, self.signals = deque(), deque()
        self.bus.filter(MatchRule(type="method_call", path=PATH), queue=self.calls)
        self.bus.filter(MatchRule(type="signal", interface="org.bellwire.Push1"), queue=self.signals)

    def call(self, method, signature="s", *more):
        message = new_method_call(PUSH, method, signature, (self.app, *more))
        reply = self.bus.send_and_get_reply(message, timeout=DEADLINE)
        if reply.header.message_type == MessageType.error:
            raise DBusError(reply)
        return reply.body

    def connect(self, **options):
        options = {name.replace("_", "-"): ("b", value) for name, value in options.items()}
        return self.call("Connect", "soa{sv}", PATH, options)

    def next_call(self):
        """The next App1.Message, not answered yet."""
        call = self.bus.recv_until_filtered(self.calls, timeout=DEADLINE)
        fields = call.header.fields
        assert (fields[2], fields[3], fields[8]) == ("org.bellwire.App1", "Message", "ssa{sv}"), fields
        app, id, members = call.body
        assert app == self.app, app
        message = check(members)
        assert message["id"] == id and message["app"] == app, message
        return call, message

    def next(self):
        """Takes the next message."""
        call, message = self.next_call()
        self.bus.send(new_method_return(call))
        return message

    def refuse_next(self):
        call, message = self.next_call()
        self.bus.send(new_error(call, "org.example.Error.NotNow", "s", ("not now",)))
        return message

    def next_signal(self):
        signal = self.bus.recv_until_filtered(self.signals, timeout=DEADLINE)
        assert signal.header.fields[3] == "RegistrationChanged", signal
        return signal.body

    def wait_unread(self, count):
        """Waits until so many messages are on the device. They come some time after curl is answered."""
        manager = PUSH.with_interface("org.bellwire.Manager1")
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            (apps,) = self.bus.send_and_get_reply(new_method_call(manager, "ListApps"), timeout=DEADLINE).body
            if [app["unread"] for app in apps if app["app"] == ("s", self.app)] == [("u", count)]:
                return
        raise TimeoutError(f"{count} messages did not come to the device")

    def unread(self):
        """Takes all unread messages one by one, without App1."""
        taken = []
        while True:
            (members,) = self.call("TakeUnread")
            if not members:
                return taken
            taken.append(check(members))


def check(members):
    """The values of a message's dictionary; each must have its type, and what is always there be there."""
    for name, (signature, _) in members.items():
        assert MEMBERS.get(name) == signature, (name, signature)
    values = {name: value for name, (_, value) in members.items()}
    assert {"id", "app", "accepted_ms", "received_ms", "expires_ms"} <= values.keys(), values
    return values


def post(**message):
    """Posts a notification by curl; returns its status code."""
    command = ["curl", "-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(DEADLINE), URL,
               "-H", f"appID: {APP}", "-H", f"appSecret: {os.environ['APP_SECRET']}",
               "-H", "Content-Type: application/json", "--data-binary", "@-"]
    done = subprocess.run(command, input=json.dumps(message).encode(), capture_output=True, check=True)
    (result,) = json.loads(done.stdout)["results"]
    assert (result["regID"], result["requestID"]) == (message["regID"], message["requestID"]), result
    return result["statusCode"]


def send(request_id, **fields):
    assert post(regID=REG_ID, requestID=request_id, **fields) == 1000


def step(text):
    print("ok:", text, flush=True)


BUS, API, APP = sys.argv[1:]
URL = API + "/spp/pns/api/push"
app = App(BUS, APP)

assert app.connect() == ("unregistered", "")
try:
    app.call("GetRegistrationId")
    raise AssertionError("an app without a registration has a regId")
except DBusError as error:
    assert error.name == "org.bellwire.Error.NotRegistered", error
(REG_ID,) = app.call("Register")
assert len(REG_ID) == 100 and REG_ID == bytes.fromhex(REG_ID).hex(), REG_ID
assert app.call("GetRegistrationId") == (REG_ID,)
assert app.next_signal() == (APP, "registered", REG_ID, "")
step("connected and registered; the signal says so")

send("1", appData="hello")
message = app.next()
assert message["app_data"] == "hello" and message["request_id"] == "1", message
assert not {"sender", "session_info", "type", "time_stamp", "message", "payload", "dropped"} & message.keys(), message
assert message["accepted_ms"] <= message["received_ms"] < message["expires_ms"], message
assert message["expires_ms"] - message["accepted_ms"] == 1440 * 60 * 1000, message
step("a text")

FULL = {"message": "badgeOption=INCREASE&badgeNumber=1&action=ALERT&alertMessage=Hi", "sender": "oscal",
        "type": 0, "sessionInfo": "002002", "timeStamp": 1234567890}
send("0000002", appData="{id:asdf&passwd:1234}", reliableOption="Transport", expiryDate=5, **FULL)
message = app.next()
assert message["app_data"] == "{id:asdf&passwd:1234}", message
assert [message[name] for name in ("message", "sender", "type", "session_info", "time_stamp")] == list(FULL.values())
assert message["expires_ms"] - message["accepted_ms"] == 5 * 60 * 1000, message
step("every optional member")

TEXT = "Grüße, 世界 \U0001F514 \"\\/\n\t\u202e"
send("3", appData=TEXT, sender="ö")
message = app.next()
assert (message["app_data"], message["sender"]) == (TEXT, "ö"), message
send("4", message="action=SILENT")
message = app.next()
assert message["message"] == "action=SILENT" and not {"app_data", "payload"} & message.keys(), message
send("5", appData="a\0b")
message = app.next()
assert message["payload"] == b"a\0b" and "app_data" not in message, message
send("6", appData="x" * 16384)
assert app.next()["app_data"] == "x" * 16384
send("7", appData="now or never", reliableOption="NoReliable")
assert app.next()["app_data"] == "now or never"
step("other scripts, no appData, appData with a NUL, the longest appData, a message that is not stored")

for number in range(20):
    send(f"row {number}", appData=str(number))
assert [app.next()["app_data"] for _ in range(20)] == [str(number) for number in range(20)]
step("twenty in a row, in order")

send("8", appData="later")
refused = app.refuse_next()
(count,) = app.call("RequestUnread")
assert count == 1, count
message = app.next()
assert (message["id"], message["app_data"]) == (refused["id"], "later"), message
step("an error answer leaves it unread, and RequestUnread gives it again")

app.call("Disconnect")
for number in range(3):
    send(f"away {number}", appData=f"away {number}")
app.wait_unread(3)
assert app.connect(hold_unread=True) == ("registered", REG_ID)
assert [message["app_data"] for message in app.unread()] == ["away 0", "away 1", "away 2"]
assert app.call("RequestUnread") == (0,)
step("what came while it was away waits with hold-unread, and TakeUnread takes it")

app.call("Disconnect")
send("9", appData="waiting")
app.wait_unread(1)
assert app.connect(hold_unread=True) == ("registered", REG_ID)
assert app.call("RequestUnread") == (1,)
assert app.next()["app_data"] == "waiting"
app.call("Disconnect")
send("10", appData="waiting too")
app.wait_unread(1)
assert app.connect() == ("registered", REG_ID)
assert app.next()["app_data"] == "waiting too"
assert app.unread() == []
step("RequestUnread gives what waits, and so does connecting without hold-unread")

app.call("Deregister")
assert app.next_signal() == (APP, "unregistered", "", "")
assert post(regID=REG_ID, requestID="11", appData="nobody") == 3008
(again,) = app.call("Register")
assert again != REG_ID, again
assert app.next_signal() == (APP, "registered", again, "")
assert post(regID=REG_ID, requestID="12", appData="nobody") == 3008
assert post(regID=again, requestID="13", appData="the new one") == 1000
assert app.next()["app_data"] == "the new one"
assert not app.calls and not app.signals, (app.calls, app.signals)
step("a regId that was given up is dead for good, and the next one works")
