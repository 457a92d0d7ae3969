#!/usr/bin/env python3
"""An application server that is told receipts: checks each signature and keeps what it is told.

    receiver.py PORT FILE KEY [--hang | --refuse]

It prints its port, then appends a line of JSON for each batch to FILE and answers 200 once that is on
disk. With --hang it never answers; with --refuse it answers 500.
"""

import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, file, key, *manner = sys.argv[1:]
kept = open(file, "a", encoding="utf-8")


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if manner == ["--hang"]:
            time.sleep(3600)
        kept.write(json.dumps({"wrong": self.what_is_wrong(body), "batch": json.loads(body)}) + "\n")
        kept.flush()
        os.fsync(kept.fileno())
        self.send_response(500 if manner == ["--refuse"] else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def what_is_wrong(self, body):
        fields = dict(field.split("=") for field in self.headers["bellwire-signature"].split(","))
        expected = hmac.new(key.encode(), fields["t"].encode() + b"." + body, "sha256").hexdigest()
        if not hmac.compare_digest(fields["v1"], expected):
            return "the signature"
        if abs(time.time() - int(fields["t"])) > 60:
            return "the time of the signature"
        if self.headers["content-type"] != "application/json":
            return "the content type"
        if not 1 <= len(json.loads(body)["receipts"]) <= 100:
            return "the number of receipts"
        return None

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(port)), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
