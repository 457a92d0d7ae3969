"""What the checks share: users, the push service as callers see it, apps, and how to wait.

Nothing here sleeps for a fixed time: it looks again and again at what is waited for, with a deadline.
"""

import contextlib
import json
import os
import pwd
import signal
import subprocess
import time
from pathlib import Path

DEADLINE = 30
TOOLS = "/usr/lib/bellwire-test"
API = "http://127.0.0.1:8090/spp/pns/api/push"


def step(text):
    print("ok -", text, flush=True)


def wait(what, look):
    """Waits until look() is true, and returns it."""
    deadline = time.monotonic() + DEADLINE
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {DEADLINE} s")
        time.sleep(0.05)


class CallError(Exception):
    """An error on the bus."""

    def __init__(self, name, why):
        super().__init__(name, why)
        self.name, self.why = name, " ".join(map(str, why))


class User:
    def __init__(self, name):
        self.entry, folder = pwd.getpwnam(name), f"/run/user/{pwd.getpwnam(name).pw_uid}"
        self.environment = {"PATH": "/usr/sbin:/usr/bin", "HOME": self.entry.pw_dir, "USER": name,
                            "XDG_RUNTIME_DIR": folder, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus"}

    def options(self):
        return {"user": self.entry.pw_uid, "group": self.entry.pw_gid, "extra_groups": [], "cwd": "/",
                "env": self.environment, "text": True, "stdin": subprocess.DEVNULL}

    def run(self, *command):
        """Runs a command as this user; returns what it printed."""
        done = subprocess.run(command, capture_output=True, **self.options())
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def call(self, bus, method, *arguments, within=()):
        """Calls the push service, perhaps within another command that runs a command."""
        words = [arguments[0], json.dumps(arguments[1:])] if arguments else []
        answer = json.loads(self.run(*within, f"{TOOLS}/call.py", bus, method, *words))
        if "error" in answer:
            raise CallError(answer["error"], answer["why"])
        return answer["body"]

    def refused(self, bus, method, *arguments, within=()):
        """The call must be refused; returns the sentence that says why."""
        try:
            body = self.call(bus, method, *arguments, within=within)
        except CallError as error:
            assert error.name == "org.bellwire.Error.PermissionDenied", error
            return error.why
        raise AssertionError(f"{self.entry.pw_name} may call {method}{arguments}: {body}")


ROOT, BELLWIRE, ALICE, BOB = map(User, ["root", "bellwire", "alice", "bob"])


class Push:
    """The push service on a bus, as its manager sees it."""

    def __init__(self, bus, manager):
        self.bus, self.manager = bus, manager

    def list(self, method, *arguments):
        (rows,) = self.manager.call(self.bus, method, *arguments)
        return [values(row) for row in rows]

    def app(self, app):
        """An app's row, or nothing."""
        return next((row for row in self.list("Manager1.ListApps") if row["app"] == app), {})

    def message(self, request_id):
        """A message's row with its hops, or nothing."""
        rows = self.list("Manager1.ListMessages", "u", 200)
        row = next((row for row in rows if row.get("request_id") == request_id), {})
        return {**row, "hops": {hop["hop"]: hop.get("why", "") for hop in map(values, row.get("hops", []))}}

    def wait_hops(self, request_id, *hops):
        """Waits until the message has been through these, in whatever order; returns its row."""
        def look():
            row = self.message(request_id)
            return row if set(hops) <= row["hops"].keys() else None
        return wait(f"the hops {hops} of {request_id}", look)

    def wait_online(self):
        """It is told to try, as sessions of seconds are none that end its growing pauses."""
        def look():
            try:
                if self.manager.call(self.bus, "Manager1.GetStatus")[0]["state"][1] == "online":
                    return True
                self.manager.call(self.bus, "Manager1.TryNow")
            except CallError:
                pass
            return False
        wait(f"the push service on the {self.bus} bus to be online", look)


@contextlib.contextmanager
def listening(user, bus, *members):
    """The push service's signals of these names that reach a user, each a name and its arguments."""
    command = ["timeout", str(DEADLINE), f"{TOOLS}/signals.py", bus, *members]
    with subprocess.Popen(command, stdout=subprocess.PIPE, **user.options()) as listener:
        assert listener.stdout.readline() == "listening\n"
        yield map(json.loads, listener.stdout)
        listener.terminate()


def values(dictionary):
    return {name: value for name, (_, value) in dictionary.items()}


class App:
    """An app as its operator added it, and what it notes on the device."""

    requests = 0

    def __init__(self, push, app):
        self.push, self.id, self.reg_id = push, app, None
        self.secret = json.loads(BELLWIRE.run("bellwire-server", "--json", "app", "add", app))["appSecret"]
        self.file, self.old, self.starts = Path("/run/bellwire-test", app), 0, 0

    def notes(self, event):
        """What it has noted since the last forget()."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        notes = [json.loads(line) for line in lines[self.old:]]
        failed = [note for note in notes if note["event"] in ("failed", "stray")]
        assert not failed, failed
        return [note for note in notes if note["event"] == event]

    def wait(self, event):
        return wait(f"{self.id} to be {event}", lambda: self.notes(event))[-1]

    def forget(self):
        self.old = len(self.file.read_text().splitlines()) if self.file.exists() else 0

    def register(self, *start):
        """Starts it by hand, so that it registers, and stops it."""
        ROOT.run(*start) if self.push.bus == "system" else ALICE.run(*start)
        self.reg_id = self.wait("registered")["reg_id"]
        assert self.notes("connected")[0]["launch"] == ["", ""], self.notes("connected")
        self.stop()

    def stop(self):
        """Ends its one process; waits until the push service knows."""
        pids = [note["pid"] for note in self.notes("started")]
        assert len(pids) == 1, f"{self.id} was started {len(pids)} times"
        os.kill(pids[0], signal.SIGTERM)
        wait(f"{self.id} to end", lambda: not Path(f"/proc/{pids[0]}").exists())
        wait(f"{self.id} to be away", lambda: not self.push.app(self.id)["connected"])
        self.starts += 1
        self.forget()

    def check_starts(self):
        """It must have been started as often as it was stopped."""
        starts = self.file.read_text().count('"event": "started"')
        assert starts == self.starts, f"{self.id} was started {starts} times, not {self.starts}"

    def send(self, action):
        """Sends it a message as an application server does; returns the request id."""
        App.requests += 1
        request_id = f"request {App.requests}"
        request = {"regID": self.reg_id, "requestID": request_id, "message": f"action={action}",
                   "appData": f"data of {request_id}"}
        answer = ROOT.run("curl", "-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(DEADLINE),
                          API, "-H", f"appID: {self.id}", "-H", f"appSecret: {self.secret}",
                          "-H", "Content-Type: application/json", "--data-binary", json.dumps(request))
        assert json.loads(answer)["results"][0]["statusCode"] == 1000, answer
        return request_id

    def launched_for(self, action):
        """Sends it a message for which it is to be started, and waits until it has it. Returns what it noted
        when it started, the message's id, and how the push service says that it started it."""
        request_id = self.send(action)
        def has_it():
            return [note for note in self.notes("message") if note["members"].get("request_id") == request_id]
        (message,) = wait(f"{self.id} to have {request_id}", has_it)
        row = self.push.wait_hops(request_id, "received", "launched", "delivered")
        id = row["id"]
        assert message["arguments"] == [self.id, id], message
        told = {"id": id, "app": self.id, "app_data": f"data of {request_id}", "message": f"action={action}",
                "request_id": request_id, "launch_type": "notification"}
        assert told.items() <= message["members"].items(), message
        assert not {"again", "dropped"} & message["members"].keys(), message
        assert [note["launch"] for note in self.notes("connected")] == [["notification", id]], self.notes("connected")
        assert "failed" not in row["hops"], row
        (started,) = self.notes("started")
        return started, id, row["hops"]["launched"]


def show(name, command, user=ROOT):
    """Prints what a command says, for whoever looks into a failure."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **user.options())
    print(f"--- {name}\n{done.stdout}", flush=True)


def show_all():
    journal = ["journalctl", "--boot", "--no-pager", "--output=short-precise"]
    show("journal of the system's units", [*journal, *(f"--unit={unit}" for unit in
                                                       ["bellwire-server", "bellwired", "chat", "polkit", "dbus"])])
    show("journal of alice's user manager", [*journal, f"_UID={ALICE.entry.pw_uid}"])
    show("units that failed", ["systemctl", "--failed", "--no-pager"])
    for bus, user in [("--user", ALICE), ("--system", ROOT)]:
        push = ["org.bellwire.Push", "/org/bellwire/Push", "org.bellwire.Manager1"]
        for method in (["GetStatus"], ["ListApps"], ["ListMessages", "u", "200"]):
            show(f"{method[0]} {bus}", ["busctl", bus, "--json=short", "call", *push, *method], user)
    for file in sorted(Path("/run/bellwire-test").iterdir()):
        print(f"--- what {file.name} noted\n{file.read_text()}")
