"""Two libraries that application servers use, pywebpush and web-push, send to an app that is a few lines of
Python on D-Bus and that opens what arrives with http_ece.

Nothing of Bellwire's code is used here. Each step fails with an AssertionError or a TimeoutError, and prints a
line when it is done. A line that begins with "!" asks whoever started this to do something with the device's
agent, and waits for the answer.

usage: judge.py BUS-ADDRESS CERTIFICATE NODE-MODULES
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jeepney import DBusAddress, MatchRule, MessageType, message_bus, new_method_call, new_method_return
from jeepney.io.blocking import open_dbus_connection
from pywebpush import WebPushException, webpush

DEADLINE = 30
SERVICE = "org.example.Senders"
CONNECTOR = "/org/unifiedpush/Connector"
DISTRIBUTOR = DBusAddress("/org/unifiedpush/Distributor", bus_name="org.unifiedpush.Distributor.bellwire",
                          interface="org.unifiedpush.Distributor2")
HERE = os.path.dirname(os.path.abspath(__file__))
# The most that fits into 4096 bytes with what goes before it (RFC 8291).
LARGEST = 3993


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def point(private):
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


class Key:
    """An application server's key for VAPID."""

    def __init__(self):
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.public = base64url(point(self.private))
        self.number = base64url(self.private.private_numbers().private_value.to_bytes(32, "big"))
        pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.file = tempfile.NamedTemporaryFile(suffix=".pem")
        self.file.write(pem)
        self.file.flush()


class App:
    """An app that speaks UnifiedPush, version 2."""

    def __init__(self, bus):
        self.bus, self.calls = open_dbus_connection(bus), deque()
        self.bus.filter(MatchRule(type="method_call", path=CONNECTOR), queue=self.calls)
        reply = self.bus.send_and_get_reply(message_bus.RequestName(SERVICE), timeout=DEADLINE)
        assert reply.body == (1,), reply.body

    def call(self, method, arguments):
        arguments = {name: ("s", value) for name, value in arguments.items()}
        reply = self.bus.send_and_get_reply(new_method_call(DISTRIBUTOR, method, "a{sv}", (arguments,)), timeout=25)
        assert reply.header.message_type == MessageType.method_return, reply
        return {name: value for name, (_, value) in reply.body[0].items()}

    def next(self, method, token):
        """The arguments of the next call, which must be this one."""
        call = self.bus.recv_until_filtered(self.calls, timeout=DEADLINE)
        fields = call.header.fields
        assert (fields[2], fields[3]) == ("org.unifiedpush.Connector2", method), fields
        arguments = {name: value for name, (_, value) in call.body[0].items()}
        assert arguments["token"] == token, arguments
        answer = {"id": ("s", arguments["id"])} if "id" in arguments else {}
        self.bus.send(new_method_return(call, "a{sv}", (answer,)))
        return arguments

    def message(self, token):
        return bytes(self.next("Message", token)["message"])

    def has_none(self):
        """Whether no call comes for a moment."""
        try:
            call = self.bus.recv_until_filtered(self.calls, timeout=1)
        except TimeoutError:
            return
        raise AssertionError(f"one more call: {call}")


class Subscription:
    """What an app gives to its application server, and the keys that open what that one sends."""

    def __init__(self, app, token, vapid=None):
        self.app, self.token = app, token
        self.private, self.auth = ec.generate_private_key(ec.SECP256R1()), os.urandom(16)
        arguments = {"service": SERVICE, "token": token, "description": "Test"}
        if vapid:
            arguments["vapid"] = vapid.public
        assert app.call("Register", arguments) == {"success": "REGISTRATION_SUCCEEDED"}
        self.endpoint = app.next("NewEndpoint", token)["endpoint"]

    def info(self, endpoint=None):
        keys = {"p256dh": base64url(point(self.private)), "auth": base64url(self.auth)}
        return {"endpoint": endpoint or self.endpoint, "keys": keys}

    def opened(self, body):
        return http_ece.decrypt(body, private_key=self.private, auth_secret=self.auth, version="aes128gcm")

    def unregister(self):
        self.app.call("Unregister", {"token": self.token})
        self.app.next("Unregistered", self.token)


class PyWebPush:
    """The library of PyPI."""

    name = "pywebpush"

    def send(self, info, payload, key=None, ttl=60, encoding="aes128gcm", **headers):
        vapid = {"vapid_private_key": key.file.name, "vapid_claims": {"sub": "mailto:push@example.org"}} if key else {}
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            answer = webpush(info, payload, ttl=ttl, headers=headers, content_encoding=encoding, timeout=DEADLINE, **vapid)
        except WebPushException as error:
            answer = error.response
            assert answer is not None, error
        return answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.text


class WebPush:
    """The library of npm."""

    name = "web-push"

    def __init__(self, modules):
        self.modules = modules

    def send(self, info, payload, key=None, ttl=60, encoding="aes128gcm", **headers):
        options = {"TTL": ttl, "contentEncoding": encoding,
                   "headers": {name.replace("_", "-"): value for name, value in headers.items()}}
        if "topic" in headers:
            options["topic"] = options["headers"].pop("topic")
        if "urgency" in headers:
            options["urgency"] = options["headers"].pop("urgency")
        if key:
            options["vapidDetails"] = {"subject": "mailto:push@example.org", "publicKey": key.public,
                                       "privateKey": key.number}
        payload = None if payload is None else base64.b64encode(payload).decode()
        job = json.dumps({"subscription": info, "payload": payload, "options": options})
        done = subprocess.run(["node", os.path.join(HERE, "send.js")], input=job, capture_output=True, text=True,
                              env={**os.environ, "NODE_PATH": self.modules}, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        return report["status"], report["headers"], report["body"]


def ask(what):
    """Has something done with the agent."""
    print(f"!{what}", flush=True)
    assert sys.stdin.readline().strip() == "done", what


def errno(body):
    return json.loads(body)["errno"]


def check(library, app):
    """All that one library is to report, and the app to get."""
    def step(what):
        print(f"{library.name}: {what}", flush=True)

    key = Key()
    open_one, restricted = Subscription(app, f"{library.name}-open"), Subscription(app, f"{library.name}-own", key)

    def expect(sub, payload, status, info=None, **options):
        got, headers, body = library.send(info or sub.info(), payload, **options)
        assert got == status, (got, status, headers, body)
        return headers, body

    for sub, options in ((open_one, {}), (open_one, {"key": key}), (restricted, {"key": key})):
        headers, _ = expect(sub, "Grüße".encode(), 201, **options)
        assert headers["location"].startswith("https://"), headers
        assert headers["ttl"] == "60", headers
        assert sub.opened(app.message(sub.token)).decode() == "Grüße"
    step("encrypted messages arrive, signed and unsigned, at an open and at a restricted endpoint")

    expect(restricted, None, 201, key=key)
    assert app.message(restricted.token) == b""
    step("an empty message arrives")

    largest = os.urandom(LARGEST)
    expect(restricted, largest, 201, key=key)
    body = app.message(restricted.token)
    assert len(body) == 4096 and restricted.opened(body) == largest
    _, body = expect(restricted, largest + b"x", 413, key=key)
    assert errno(body) == 104
    step("3993 bytes are a body of 4096, which arrives as it was; one more is refused")

    _, body = expect(restricted, b"x", 403, key=Key())
    assert errno(body) == 109
    headers, body = expect(restricted, b"x", 401)
    assert (headers["www-authenticate"], errno(body)) == ("vapid", 109)
    forged = restricted.endpoint[:-1] + ("A" if restricted.endpoint[-1] != "A" else "B")
    _, body = expect(restricted, b"x", 404, info=restricted.info(forged), key=key)
    assert errno(body) == 102
    step("another's key, no key and a forged endpoint are refused")

    for sub, options in ((open_one, {}), (restricted, {"key": key})):
        expect(sub, b"draft", 201, encoding="aesgcm", **options)
        assert len(app.message(sub.token)) > len(b"draft")
    step("the encoding of drafts is taken")

    headers, _ = expect(restricted, b"long", 201, key=key, ttl=2419200, urgency="high")
    assert int(headers["ttl"]) < 2419200, headers
    assert restricted.opened(app.message(restricted.token)) == b"long"
    headers, _ = expect(restricted, b"receipt", 202, key=key, prefer="respond-async")
    assert "urn:ietf:params:push:receipt" in headers["link"], headers
    assert restricted.opened(app.message(restricted.token)) == b"receipt"
    step("life, urgency and receipts are as the library asks for")

    ask("stop")
    expect(restricted, b"dropped", 201, key=key, ttl=0)
    expect(restricted, b"1:0", 201, key=key, topic="score")
    expect(restricted, b"rain", 201, key=key, topic="weather")
    expect(restricted, b"2:0", 201, key=key, topic="score")
    ask("start")
    got = [restricted.opened(app.message(restricted.token)) for _ in range(2)]
    assert got == [b"rain", b"2:0"], got
    app.has_none()
    step("of what waits the newest of a topic arrives, and nothing that was not to wait")

    ask("freeze")
    for score in range(5):
        expect(restricted, b"%d" % score, 201, key=key, topic="score")
    ask("thaw")
    got = []
    while not got or got[-1] != b"4":
        got.append(restricted.opened(app.message(restricted.token)))
    assert got == sorted(set(got)), got
    app.has_none()
    step("whatever a replacement meets on its way, the newest arrives, and none twice")

    for sub, options in ((restricted, {"key": key}), (open_one, {})):
        sub.unregister()
        _, body = expect(sub, b"x", 410, **options)
        assert errno(body) == 103
    step("an endpoint that has ended is gone")


def check_limit(libraries, app):
    """Last: nothing can be sent for a while afterwards."""
    sub = Subscription(app, "limit")
    for library in libraries:
        deadline, status = time.monotonic() + DEADLINE, 201
        while status == 201:
            assert time.monotonic() < deadline, "nothing is over the limit"
            status, headers, body = library.send(sub.info(), None, ttl=0)
        assert (status, errno(body)) == (429, 201), (status, body)
        assert int(headers["retry-after"]) > 0, headers
        print(f"{library.name}: over a limit it is told when to come again", flush=True)


def main():
    bus, certificate, modules = sys.argv[1:]
    os.environ.update(REQUESTS_CA_BUNDLE=certificate, NODE_EXTRA_CA_CERTS=certificate)
    app, libraries = App(bus), [PyWebPush(), WebPush(modules)]
    for library in libraries:
        check(library, app)
    check_limit(libraries, app)


main()
