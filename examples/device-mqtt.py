#!/usr/bin/env python3
"""The device of device.py over MQTT, from bellwire-protocol(7) and a stock MQTT client: it acknowledges each
notification once it is in FOLDER, where device.py has enrolled it.

    python3 device-mqtt.py mqtt://127.0.0.1:1883/bellwire FOLDER

Needs paho-mqtt 2. A real device also connects again, and pings while it waits.
"""
import json
import os
import secrets
import sys
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device import identity, keep

WINDOW = 32


def main(url, folder):
    broker = urlsplit(url)
    root = broker.path.strip("/") or "bellwire"
    me = identity(os.path.join(folder, "identity"))
    device, link = me["device"], secrets.token_hex(8)
    down, server = f"{root}/{device}/down/{link}", None

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=device, protocol=mqtt.MQTTv5)
    client.username_pw_set(device, me["secret"])
    client.will_set(f"{root}/{device}/gone/{link}", json.dumps({"bye": {"reason": "silent"}}), qos=1)
    if broker.scheme == "mqtts":
        client.tls_set()

    def send(name, **members):
        topic, properties = server, None
        if topic is None:
            topic, properties = f"{root}/{device}/hello/{link}", Properties(PacketTypes.PUBLISH)
            properties.MessageExpiryInterval = 15
        client.publish(topic, json.dumps({name: members}), qos=0 if name == "ping" else 1, properties=properties)

    def connected(client, _data, _flags, reason, _properties):
        if reason.is_failure:
            sys.exit(f"the broker refuses this device: {reason}")
        client.subscribe([(down, mqtt.SubscribeOptions(qos=1)), (f"{root}/servers/+", mqtt.SubscribeOptions(qos=1))])

    def subscribed(client, _data, _id, reasons, _properties):
        if any(reason.is_failure for reason in reasons):
            sys.exit(f"the broker refuses the subscription: {reasons[0]}")
        send("hello", version=1, agent="device-mqtt.py", next_s=7200, **me)

    def arrived(client, _data, message):
        nonlocal server
        if message.topic != down and (server is None or message.topic.split("/")[-1] != server.split("/")[-1]):
            return  # the end of another server
        server = getattr(message.properties, "ResponseTopic", server)
        (name, frame), = json.loads(message.payload).items()
        if name == "push":
            keep(folder, frame["push"])
            send("ack", ids=[frame["push"]["id"]])
        elif name == "bye":
            sys.exit(f"the server ended the session: {frame['reason']}")
        else:
            print(name, frame, flush=True)
            if name == "welcome":
                send("ping", seq=1, next_s=7200)

    client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, arrived
    properties = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = 2 * WINDOW
    port = broker.port or (8883 if broker.scheme == "mqtts" else 1883)
    client.connect(broker.hostname, port, keepalive=1800, clean_start=True, properties=properties)
    client.loop_forever(retry_first_connection=False)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
