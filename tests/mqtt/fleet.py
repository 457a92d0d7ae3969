#!/usr/bin/env python3
"""Many devices of stock clients in one process, which may be stopped as a whole: they enrol and register over
WebSockets, print their regIds, and at the first line of input go on over MQTT until each has COUNT messages.

    python3 fleet.py GATEWAY BROKER-PORT APP DEVICES COUNT
"""
import json
import secrets
import sys
import threading

import paho.mqtt.client as mqtt
import websocket

ROOT = "bellwire"
printing = threading.Lock()


def say(*words):
    with printing:
        print(*words, flush=True)


class Device:
    def __init__(self, gateway, app):
        self.identity = {"device": secrets.token_hex(16), "secret": secrets.token_hex(32)}
        link = websocket.create_connection(gateway, subprotocols=["bellwire.1"])
        link.send(json.dumps({"hello": {"version": 1, "agent": "fleet.py", "next_s": 60, **self.identity}}))
        link.send(json.dumps({"register": {"req": 1, "app": app}}))
        while "registered" not in (frame := json.loads(link.recv())):
            pass
        self.reg_id = frame["registered"]["reg_id"]
        link.send(json.dumps({"bye": {"reason": "shutdown"}}))
        link.close()
        # What it has on its disk, as far as a device of a test has one: in the order in which it came.
        self.kept, self.repeated, self.done = [], 0, threading.Event()

    def live(self, port, count):
        """One connection after the other, until it has everything."""
        while not self.done.is_set():
            try:
                self.connect(port, count)
            except (OSError, ValueError):
                pass
            self.done.wait(0.5)

    def connect(self, port, count):
        device, link = self.identity["device"], secrets.token_hex(8)
        server, ended = None, threading.Event()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=device, protocol=mqtt.MQTTv5)
        client.username_pw_set(device, self.identity["secret"])
        client.will_set(f"{ROOT}/{device}/gone/{link}", json.dumps({"bye": {"reason": "silent"}}), qos=1)

        def send(name, **members):
            client.publish(server or f"{ROOT}/{device}/hello/{link}", json.dumps({name: members}), qos=1)

        def connected(_client, _data, _flags, reason, _properties):
            if reason.is_failure:
                ended.set()
            else:
                client.subscribe(f"{ROOT}/{device}/down/{link}", qos=1)

        def subscribed(_client, _data, _id, _reasons, _properties):
            send("hello", version=1, agent="fleet.py", next_s=7200, resume=self.kept[-32:], **self.identity)

        def arrived(_client, _data, message):
            nonlocal server
            server = getattr(message.properties, "ResponseTopic", server)
            (name, frame), = json.loads(message.payload).items()
            if name == "welcome":
                say("welcome", device)
            elif name == "bye":
                ended.set()
            elif name == "push":
                push = frame["push"]
                if push["id"] in self.kept:
                    self.repeated += 1
                else:
                    self.kept.append(push["id"])
                    say("has", self.reg_id, push["request_id"])
                send("ack", ids=[push["id"]])
                if len(self.kept) == count:
                    self.done.set()

        client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, arrived
        client.on_disconnect = lambda *_: ended.set()
        # No matching subscribers: the server is not there yet.
        client.on_publish = lambda _client, _data, _id, reason, _properties: reason.value == 16 and ended.set()
        client.connect("127.0.0.1", port, keepalive=60, clean_start=True)
        client.loop_start()
        # After the last message a moment for its acknowledgement, and for what should not come.
        while not ended.wait(0.1):
            if self.done.is_set():
                ended.wait(2)
                break
        client.disconnect()
        client.loop_stop()


def main(gateway, port, app, devices, count):
    fleet = [Device(gateway, app) for _ in range(int(devices))]
    say("registered", *(device.reg_id for device in fleet))
    sys.stdin.readline()
    threads = [threading.Thread(target=device.live, args=(int(port), int(count))) for device in fleet]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("done", sum(device.repeated for device in fleet))


if __name__ == "__main__":
    main(*sys.argv[1:])
