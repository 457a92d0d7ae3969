#!/usr/bin/env python3
"""Delivers messages through a server and a device whose programs are for another machine.

    run.py aarch64|armv7|here FOLDER [--libraries FOLDER]

FOLDER has bellwire-server and bellwired. Those for ARM run under qemu-user; the bus, the app
(examples/app.py) and the sender are this machine's own. A device enrols over TLS, its app registers
and is delivered to. Then both programs are killed with a message between them, their stores are
dated 2040, and they are started anew: the app has the message once, and the next one too.
--libraries has libraries that the programs need beside the C library.

Exit status: 0 all is well, 1 a check failed, 69 something is missing here.
"""

import argparse
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent.parent
APP = "org.example.App"
DEADLINE_S = 60
YEAR_2040_S = 2208988800
# A program's machine as its ELF header has it, and how it is run here.
MACHINES = {
    "aarch64": (183, ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]),
    "armv7": (40, ["qemu-arm-static", "-L", "/usr/arm-linux-gnueabihf"]),
    "here": (None, []),
}
PROGRAMS = ("bellwire-server", "bellwired")
NEEDED = {"dbus-daemon": "dbus", "openssl": "openssl"}
PACKAGES = {"qemu-aarch64-static": "qemu-user-static", "/usr/aarch64-linux-gnu": "libc6-arm64-cross",
            "qemu-arm-static": "qemu-user-static", "/usr/arm-linux-gnueabihf": "libc6-armhf-cross"}
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={0}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("machine", choices=MACHINES)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--libraries", type=Path, metavar="FOLDER")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run(given.machine, given.folder, given.libraries)


def run(machine, folder, libraries):
    number, emulator = MACHINES[machine]
    if libraries:
        emulator = [*emulator, *(["-E"] if emulator else ["env"]), f"LD_LIBRARY_PATH={libraries.resolve()}"]
    programs = [program(folder.resolve() / name, number) for name in PROGRAMS]
    look_for_tools(emulator)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        deliver(Stage(Path(folder), running, emulator, programs))


def program(path, number):
    """The path, if it is a program for that machine: another one would prove nothing."""
    if not path.is_file():
        give_up(f"{path} is missing: make cross")
    header = path.open("rb").read(20)
    machine = int.from_bytes(header[18:20], "little")
    if header[:4] != b"\x7fELF" or number not in (None, machine):
        give_up(f"{path} is not for this machine: its ELF header says {machine}, not {number}")
    return path


def look_for_tools(emulator):
    for tool, package in NEEDED.items():
        if not shutil.which(tool):
            give_up(f"{tool} is missing: apt-get install {package}")
    for word in emulator:
        if word in PACKAGES and not (shutil.which(word) or Path(word).exists()):
            give_up(f"{word} is missing: apt-get install {PACKAGES[word]}")
    try:
        import jeepney  # noqa: F401, the app needs it
    except ImportError:
        give_up(f"{sys.executable} has no jeepney: apt-get install python3-jeepney, and run it with /usr/bin/python3")


def give_up(why):
    print(f"run.py: {why}", file=sys.stderr)
    sys.exit(69)


def step(text):
    print("ok -", text, flush=True)


def deliver(stage):
    stage.start_server()
    credentials = json.loads(stage.administer("--json", "app", "add", APP))
    stage.start_agent()
    app = stage.start_app()
    reg_id = app.until(r"regId ([0-9a-f]{100})$")[1]
    step("the device has enrolled over TLS, and its app is registered")
    stage.send(credentials, reg_id, "first")
    check_times(app.until(r"message .*app_data='first'").string)
    step("a message was delivered, and its times are those of today")

    app.stop()
    stage.send(credentials, reg_id, "second")
    stage.kill()
    stage.date_stores()
    stage.start_server()
    stage.start_agent()
    app = stage.start_app()
    assert app.until(r"regId ([0-9a-f]{100})$")[1] == reg_id, app.said
    app.until(r"(unread|message) .*app_data='second'")
    step("after kill -9 of both, with stores of 2040, the message that was answered 1000 was delivered")
    stage.send(credentials, reg_id, "third")
    app.until(r"message .*app_data='third'")
    assert sum("app_data='second'" in line for line in app.said) == 1, app.said
    step("the next one was delivered, and none twice")
    app.stop()
    assert stage.stop() == [0, 0], stage.said()
    step("both programs have ended in order")


def check_times(line):
    """Milliseconds need more than 32 bits."""
    times = {name: int(value) for name, value in re.findall(r"(\w+)_ms=(\d+)", line)}
    now = time.time() * 1000
    for name in ("accepted", "received"):
        assert abs(times[name] - now) < DEADLINE_S * 1000, f"{name}_ms is {times[name]}, it is {now}"
    assert times["expires"] > times["accepted"], times


class Stage:
    """A folder, a bus, and the two programs."""

    def __init__(self, folder, running, emulator, programs):
        self.folder, self.running, self.emulator = folder, running, emulator
        self.server_program, self.agent_program = programs
        self.api = self.gateway = "127.0.0.1:0"
        self.server = self.agent = None
        # Nothing that is installed on this machine is found, and no proxy of it is asked.
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": f"{folder}/data",
                            "XDG_DATA_DIRS": f"{folder}/nothing", "DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus",
                            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/bus"}
        self.make_certificate()
        (folder / "bus.conf").write_text(BUS.format(folder))
        bus = self.start(["dbus-daemon", "--nofork", "--nopidfile", "--print-address=1",
                          f"--config-file={folder}/bus.conf"])
        bus.until("^unix:")

    def make_certificate(self):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                   "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                   "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", self.folder / "key.pem",
                   "-out", self.folder / "cert.pem"]
        subprocess.run(command, check=True, capture_output=True)

    def start(self, command):
        process = Process(command, self.environment)
        self.running.callback(process.stop)
        return process

    def start_server(self):
        tls = f'tls = {{ certificate = "{self.folder}/cert.pem", key = "{self.folder}/key.pem" }}'
        config = self.folder / "server.toml"
        config.write_text(f'state-folder = "{self.folder}/server"\n[api]\nlisten = "{self.api}"\n{tls}\n'
                          f'[gateway]\nlisten = "{self.gateway}"\n{tls}\n')
        self.server = self.start([*self.emulator, self.server_program, "--config", config])
        ready = self.server.until(" ready ").string
        self.api = re.search(r"api=https://(\S+)", ready)[1]
        self.gateway = re.search(r"gateway=wss://(\S+)", ready)[1]

    def administer(self, *arguments):
        command = [*self.emulator, self.server_program, "--config", self.folder / "server.toml", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, env=self.environment).stdout

    def start_agent(self):
        config = self.folder / "agent.toml"
        config.write_text(f'gateway = "wss://{self.gateway}"\nca = "{self.folder}/cert.pem"\n'
                          f'state-folder = "{self.folder}/agent"\n')
        self.agent = self.start([*self.emulator, self.agent_program, "--config", config])
        self.agent.until(" ready ")

    def start_app(self):
        return self.start([sys.executable, SOURCE / "examples/app.py", APP])

    def send(self, credentials, reg_id, data):
        body = json.dumps({"regID": reg_id, "requestID": data, "appData": data}).encode()
        headers = {"appID": credentials["appID"], "appSecret": credentials["appSecret"]}
        request = urllib.request.Request(f"https://{self.api}/spp/pns/api/push", body, headers)
        trusted = ssl.create_default_context(cafile=self.folder / "cert.pem")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                             urllib.request.HTTPSHandler(context=trusted))
        with opener.open(request, timeout=DEADLINE_S) as answer:
            results = json.load(answer)["results"]
        assert [result["statusCode"] for result in results] == [1000], results

    def kill(self):
        for process in (self.server, self.agent):
            process.child.kill()
            process.child.wait()

    def date_stores(self):
        for store in ("server/server.db", "agent/agent.db"):
            for file in self.folder.glob(f"{store}*"):
                os.utime(file, (YEAR_2040_S, YEAR_2040_S))
            assert (self.folder / store).stat().st_mtime == YEAR_2040_S, store

    def stop(self):
        return [process.stop() for process in (self.agent, self.server)]

    def said(self):
        return "\n".join(self.agent.said + self.server.said)


class Process:
    """A program that runs, and what it says."""

    def __init__(self, command, environment):
        self.command, self.said, self.lines = command, [], queue.Queue()
        self.child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True, errors="replace")
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        for line in self.child.stdout:
            self.said.append(line.rstrip("\n"))
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def until(self, pattern):
        """Waits for a line with this; returns the match."""
        deadline = time.monotonic() + DEADLINE_S
        with contextlib.suppress(queue.Empty):
            while (line := self.lines.get(timeout=max(0, deadline - time.monotonic()))) is not None:
                if found := re.search(pattern, line):
                    return found
        said = "\n".join(self.said)
        raise AssertionError(f"{self.command[0]} did not say {pattern!r} within {DEADLINE_S} s:\n{said}")

    def stop(self):
        """Ends it in order, by force after a while; returns its exit status."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            return self.child.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
