"""The units that are shipped: what systemd hears of the daemons, what it does when they die, hang or cannot
start, who may have the name on the bus, and what is opened or handed to them."""

import contextlib
import json
import os
import re
import subprocess
from pathlib import Path

import guide
from machine import ALICE, BELLWIRE, BOB, DEADLINE, ROOT, TOOLS, CallError, Push, step, wait

AGENT, SERVER, SOCKET = "bellwired.service", "bellwire-server.service", "bellwire-server.socket"
CONFIGURATION = {AGENT: Path("/etc/bellwire/agent.toml"), SERVER: Path("/etc/bellwire/server.toml")}
NAME, OBJECT = "org.bellwire.Push", "/org/bellwire/Push"
PUSH = Push("system", ROOT)


def check():
    judged()
    for unit in (SERVER, AGENT):
        ROOT.run("systemctl", "enable", "--quiet", unit)
    ROOT.run("systemctl", "restart", SERVER, AGENT)
    ready()
    for unit in (SERVER, AGENT):
        for how in ("ABRT", "KILL"):
            comes_back(unit, how)
        hangs(unit)
        refuses(unit)
        reloads(unit)
    credentials()
    sockets()
    regions()
    names()
    another_user()
    upgraded()
    activated()


def judged():
    for unit, most in ((SERVER, 15), (AGENT, 20)):
        verified = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
        assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", ""), verified
        ROOT.run("systemd-analyze", "security", "--no-pager", f"--threshold={most}", unit)
    step("systemd-analyze finds nothing in the units, and counts them as at most 1.5 and 2.0")


def show(unit, *names):
    lines = ROOT.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return [found[name] for name in names]


def journal(unit, since):
    """What a unit and systemd have said of it since the cursor."""
    lines = ROOT.run("journalctl", f"--unit={unit}", f"--after-cursor={since}", "--output=json", "--no-pager")
    return [json.loads(line)["MESSAGE"] for line in lines.splitlines()]


def cursor():
    return ROOT.run("journalctl", "--lines=0", "--show-cursor", "--quiet").strip().removeprefix("-- cursor: ")


def journal_has(unit, since, text):
    return wait(f"{text} in the journal", lambda: [line for line in journal(unit, since) if text in line])


@contextlib.contextmanager
def drop_in(unit, text):
    """Another setting of a unit, which is restarted with it, and again without it."""
    folder = Path(f"/run/systemd/system/{unit}.d")
    folder.mkdir(parents=True)
    (folder / "test.conf").write_text(text)
    try:
        ROOT.run("systemctl", "daemon-reload")
        ROOT.run("systemctl", "restart", unit)
        yield
    finally:
        (folder / "test.conf").unlink()
        folder.rmdir()
        ROOT.run("systemctl", "daemon-reload")
        ROOT.run("systemctl", "restart", unit)


@contextlib.contextmanager
def configured(unit, text):
    """Another configuration in the file."""
    file = CONFIGURATION[unit]
    before = file.read_text()
    file.write_text(text)
    try:
        yield file
    finally:
        file.write_text(before)


def device():
    return PUSH.manager.call("system", "Manager1.GetStatus")[0]["device"][1]


def ready():
    # Who was restarted with --wait for readiness may call at once.
    assert PUSH.manager.call("system", "Manager1.GetStatus")
    PUSH.wait_online()
    wait("the agent's line", lambda: show(AGENT, "StatusText") == ["online at ws://127.0.0.1:5223, region 00"])
    wait("the server's line", lambda: "connected" in show(SERVER, "StatusText")[0])
    for file in ("agent.db", "server.db"):
        state = Path("/var/lib/bellwire", file).stat()
        assert (state.st_uid, state.st_mode & 0o777) == (BELLWIRE.entry.pw_uid, 0o600), file
    step("both are ready when systemd says so, tell it how they are, and keep their stores to themselves")


def comes_back(unit, how):
    (pid, restarts), before = show(unit, "MainPID", "NRestarts"), device()
    ROOT.run("systemctl", "kill", f"--signal={how}", unit)
    def back():
        now, count, state = show(unit, "MainPID", "NRestarts", "ActiveState")
        return state == "active" and now != pid and int(count) == int(restarts) + 1
    wait(f"{unit} to come back", back)
    PUSH.wait_online()
    assert device() == before
    step(f"{unit} is started again after SIG{how}, and the device is the same and online")


def hangs(unit):
    with drop_in(unit, "[Service]\nWatchdogSec=2s\n"):
        since, (pid, restarts) = cursor(), show(unit, "MainPID", "NRestarts")
        ROOT.run("systemctl", "kill", "--signal=STOP", unit)
        wait(f"{unit} to be started anew", lambda: int(show(unit, "NRestarts")[0]) > int(restarts))
        wait(f"{unit} to be ready", lambda: show(unit, "ActiveState") == ["active"])
        assert show(unit, "MainPID") != [pid]
        assert any("Watchdog timeout" in line for line in journal(unit, since))
        PUSH.wait_online()
    step(f"{unit} is started again when it hangs, and not while it lives")


def refuses(unit):
    with configured(unit, "\ngatway = 1\n") as file:
        since = cursor()
        stopped = subprocess.run(["systemctl", "restart", unit], capture_output=True, text=True)
        assert stopped.returncode != 0
        assert show(unit, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "78", "0"], show(unit, "Result")
        told = [line for line in journal(unit, since) if "gatway" in line]
        program = unit.removesuffix(".service")
        assert len(told) == 1 and told[0].startswith(f"{program}: {file}:2: unknown field `gatway`"), told
    ROOT.run("systemctl", "start", unit)
    PUSH.wait_online()
    step(f"{unit} refuses a configuration that makes no sense once, with its file and line")


def reloads(unit):
    (pid,) = show(unit, "MainPID")
    with configured(unit, "log = \"debug\"\n[limits]\nno-such-key = 1\n"):
        since = cursor()
        ROOT.run("systemctl", "reload", unit)
        assert any(":3: unknown field" in line for line in journal_has(unit, since, "stays as it was"))
    with configured(unit, "log = \"debug\"\nlog-format = \"json\"\n"):
        since = cursor()
        ROOT.run("systemctl", "reload", unit)
        journal_has(unit, since, "take effect with the next start: log-format")
        journal_has(unit, since, "again")
    ROOT.run("systemctl", "reload", unit)
    assert show(unit, "MainPID", "ActiveState") == [pid, "active"]
    PUSH.wait_online()
    step(f"a reload of {unit} takes what is good, says what waits for a start, and leaves it as it was else")


def credentials():
    secrets = "[Service]\nLoadCredential=server.toml:/etc/bellwire/server.toml\n"
    hands_over(SERVER, secrets, "region = \"07\"\n", "region=07")
    step("the server reads a configuration that systemd hands to it and nobody else may read")
    # The guide's own words, and more in the log than the agent else says.
    secrets, certificate = guide.examples("\n.SS Secrets that only the service may read\n", "\n.SH ")
    key, public = (Path(f"/etc/bellwire/device.{ending}") for ending in ("key", "pem"))
    ROOT.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-subj", "/CN=device", "-keyout", str(key), "-out", str(public))
    assert key.stat().st_mode & 0o777 == 0o600 and str(key) in secrets and key.name in certificate, secrets
    hands_over(AGENT, secrets, "log = \"debug\"\n" + certificate, "state=Greeting")
    key.unlink()
    public.unlink()
    step("the agent reads a configuration and a key as the guide has systemd hand them to it")


def hands_over(unit, setting, configuration, told):
    """Who is started with a configuration that only root can read says of it what is to be told."""
    with drop_in(unit, setting), configured(unit, configuration) as file:
        since = cursor()
        file.chmod(0o600)
        ROOT.run("systemctl", "restart", unit)
        file.chmod(0o644)
        journal_has(unit, since, told)
        PUSH.wait_online()


def posts():
    """How the API answers a request without an app."""
    done = subprocess.run(["curl", "-q", "--silent", "--noproxy", "*", "--max-time", str(DEADLINE), "--output",
                           "/dev/null", "--write-out", "%{http_code}", "http://127.0.0.1:8090/readyz"],
                          capture_output=True, text=True)
    return done.stdout


def sockets():
    ROOT.run("systemctl", "stop", SERVER)
    ROOT.run("systemctl", "start", SOCKET)
    assert show(SERVER, "ActiveState") == ["inactive"]
    assert posts() == "200", "the first connection starts the server and is served"
    PUSH.wait_online()
    # Whoever comes while there is no server waits for the next one.
    for _ in range(5):
        ROOT.run("systemctl", "kill", "--signal=KILL", SERVER)
        assert posts() == "200"
    ROOT.run("systemctl", "stop", SOCKET, SERVER)
    ROOT.run("systemctl", "start", SERVER)
    step("systemd opens the server's ports, and nobody is refused while the server comes back")


def regions():
    Path("/etc/bellwire/server-03.toml").write_text(
        'region = "03"\nstate-folder = "/var/lib/bellwire/03"\n'
        '[api]\nlisten = "127.0.0.1:8093"\n[gateway]\nlisten = "127.0.0.1:5226"\n')
    ROOT.run("systemctl", "start", "bellwire-server@03.service")
    ROOT.run("bellwire-server", "--config", "/etc/bellwire/server-03.toml", "app", "add", "org.example.Region")
    for file in Path("/var/lib/bellwire/03").iterdir():
        assert file.stat().st_uid == BELLWIRE.entry.pw_uid, f"root has made {file}"
    assert show(SERVER, "ActiveState") == ["active"]
    ROOT.run("systemctl", "stop", "bellwire-server@03.service")
    step("a second region runs beside the first, and what root does to its store is the server's")


def own(user):
    """Asks for the name on the bus; returns what the bus says."""
    done = subprocess.run(["busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
                           "RequestName", "su", NAME, "4"], capture_output=True, **{**user.options(), "text": True})
    return done.stdout.strip() or done.stderr.strip()


def names():
    for user in (ALICE, BOB):
        assert "Access denied" in own(user), own(user)
    for user in (ROOT, BELLWIRE):
        # 3: it is there already, and whoever asked may wait for it.
        assert own(user) == "u 3", own(user)
    ROOT.run("systemctl", "stop", AGENT)
    for user in (ALICE, BOB):
        assert "Access denied" in own(user), own(user)
    for user in (ROOT, BELLWIRE):
        assert own(user) == "u 1", own(user)
    ROOT.run("systemctl", "start", AGENT)
    step("root and the service's user may have the name, and nobody else")


def another_user():
    """The files that the guide adds for an agent that is no bellwire. The server has the same folder, and waits."""
    ROOT.run("systemctl", "stop", SERVER)
    before = device()
    (typed,) = guide.examples("\n.B Another user\n", "\n.TP\n")
    added = [Path(name) for name in re.findall("> (/etc/\\S+)", typed)]
    shipped = Path("/usr/share/dbus-1/system.d/org.bellwire.Push.conf").read_text()
    assert may(shipped, "bellwire") == may(typed, "push") != [], "the user may what bellwire may"
    try:
        ROOT.run("bash", "-euc", typed)
        owner = Path("/proc", *show(AGENT, "MainPID")).owner()
        assert (owner, Path("/var/lib/bellwire/agent.db").owner(), len(added)) == ("push", "push", 4), (owner, added)
        assert device() == before
        # What the added file of tmpfiles.d says is all that is said.
        said = ROOT.run("systemd-tmpfiles", "--cat-config")
        assert added[1].read_text() in said and f"# /usr/lib/tmpfiles.d/{added[1].name}" not in said, said
    finally:
        for file in added:
            file.unlink(missing_ok=True)
        ROOT.run("systemctl", "reload", "dbus")
        ROOT.run("systemctl", "daemon-reload")
        ROOT.run("systemctl", "restart", SERVER, AGENT)
    assert device() == before
    ready()
    step("who adds the guide's files for another user has an agent of that user")


def may(rules, user):
    """What rules of the bus let a user do."""
    return rules.partition(f'<policy user="{user}">')[2].partition("</policy>")[0].split()


def upgraded():
    """Packages over those that are there, if the machine has packages."""
    packages = sorted(Path(TOOLS, "packages").glob("*.deb"))
    if not packages:
        return
    before = device()
    ROOT.run("bellwire-server", "app", "add", "org.example.Kept")
    with configured(SERVER, "[limits]\nhistory-hours = 1\n"), port_opener() as opened:
        pids = [show(unit, "MainPID") for unit in (AGENT, SERVER)]
        ROOT.run("dpkg", "--install", *map(str, packages))
        assert show(SOCKET, "ActiveState", "InvocationID") == ["active", opened], "the ports were closed"
        assert "history-hours = 1" in CONFIGURATION[SERVER].read_text()
        for unit, pid in zip((AGENT, SERVER), pids, strict=True):
            assert show(unit, "ActiveState") == ["active"] and show(unit, "MainPID") != pid, unit
        PUSH.wait_online()
        assert device() == before
        assert "org.example.Kept" in ROOT.run("bellwire-server", "app", "list")
    ROOT.run("systemctl", "restart", SERVER)
    PUSH.wait_online()
    step("packages are upgraded while both run: they are restarted, with the store and the configuration as they were")
    removed(packages)


@contextlib.contextmanager
def port_opener():
    """The server's ports are those of its socket unit; gives what tells this opening from the next."""
    ROOT.run("systemctl", "stop", SERVER)
    ROOT.run("systemctl", "start", SOCKET, SERVER)
    try:
        (opened,) = show(SOCKET, "InvocationID")
        yield opened
    finally:
        ROOT.run("systemctl", "stop", SOCKET, SERVER)
        ROOT.run("systemctl", "start", SERVER)


def removed(packages):
    before = device()
    ROOT.run("dpkg", "--remove", "bellwired", "bellwire-server")
    for unit in (AGENT, SERVER):
        assert show(unit, "ActiveState", "SubState") == ["inactive", "dead"], unit
    ROOT.run("dpkg", "--install", *map(str, packages))
    for unit in (AGENT, SERVER):
        assert show(unit, "ActiveState") == ["active"], unit
    PUSH.wait_online()
    assert device() == before
    step("who is removed and installed again is started, and goes on with what it had")


def activated():
    ROOT.run("systemctl", "stop", AGENT)
    assert ALICE.call("system", "Push1.Connect", "soa{sv}", "org.example.Chat", "/app", {}), "an app's call starts it"
    assert show(AGENT, "ActiveState") == ["active"]
    ROOT.run("systemctl", "disable", "--now", "--quiet", AGENT)
    try:
        ALICE.call("system", "Push1.GetBadge", "s", "org.example.Chat")
        raise AssertionError("a unit that is disabled was started")
    except CallError as error:
        assert "not found" in str(error.why), error
    assert os.path.exists("/usr/share/dbus-1/system-services/org.bellwire.Push.service")
    step("an app's call starts the agent where it is enabled, and not where it is disabled")
