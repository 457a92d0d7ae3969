#!/usr/bin/env python3
"""A device without bellwired, from bellwire-protocol(7) and a stock WebSocket client: it enrols,
registers an app, and acknowledges each notification once it is in FOLDER.

    python3 device.py ws://127.0.0.1:5223 APP-ID FOLDER

Needs websocket-client (Debian's python3-websocket). A real device also connects again, and pings
while it waits.
"""
import json
import os
import secrets
import sys

import websocket


def store(path, text):
    """Puts a text on disk: when this returns, it survives a power cut."""
    with open(path + ".new", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def identity(path):
    if not os.path.exists(path):
        os.umask(0o077)
        store(path, json.dumps({"device": secrets.token_hex(16), "secret": secrets.token_hex(32)}))
    with open(path) as file:
        return json.load(file)


def keep(folder, push):
    """Stores a notification, unless it is there already: it may come again."""
    path = os.path.join(folder, push["id"])
    if not os.path.exists(path):
        store(path, json.dumps(push))
        print(push["id"], push.get("payload"), flush=True)


def main(gateway, app, folder):
    os.makedirs(folder, exist_ok=True)
    link = websocket.create_connection(gateway, subprotocols=["bellwire.1"])

    def send(name, **members):
        link.send(json.dumps({name: members}))

    send("hello", version=1, agent="device.py", next_s=7200, **identity(os.path.join(folder, "identity")))
    while True:
        (name, frame), = json.loads(link.recv()).items()
        if name == "welcome":
            send("register", req=1, app=app)
        elif name == "push":
            keep(folder, frame["push"])
            send("ack", ids=[frame["push"]["id"]])
        elif name == "bye":
            sys.exit(f"the server ended the session: {frame['reason']}")
        else:
            print(name, frame, flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
