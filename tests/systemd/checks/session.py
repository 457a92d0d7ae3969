"""On the bus of a user's session: messages start apps by their name on the bus, by their desktop file, and
as a systemd unit; and what cannot be started is told."""

import json
import subprocess
from pathlib import Path

from machine import ALICE, TOOLS, App, Push, listening, step, wait

PUSH = Push("session", ALICE)
BELLWIRED = "/app.slice/bellwired.service"
OF_ALICE = f"/user.slice/user-{ALICE.entry.pw_uid}.slice/user@{ALICE.entry.pw_uid}.service"


def check():
    ALICE.run("systemctl", "--user", "start", "bellwired.service")
    PUSH.wait_online()
    step("bellwired is online as a user unit on alice's bus")
    apps = [by_name(), by_program(), by_unit(), late(), last_resort()]
    not_started(registered("org.example.Broken"), "broken.service")
    not_started(registered("org.example.No-Interpreter"), "its program could not be executed")
    for app in apps:
        app.check_starts()
    step("each start was one process, and nothing was started later")
    ALICE.run("systemctl", "--user", "stop", "bellwired.service")


def registered(id, *options):
    app = App(PUSH, id)
    app.register("systemd-run", "--user", "--quiet", "--collect", f"{TOOLS}/app.py", id, *options)
    return app


def by_name():
    app = registered("org.example.By-Name", "--name", "org.example.By-Name")
    started, id, how = app.launched_for("LAUNCH")
    activated = app.wait("activated")["platform"]
    assert activated == {"bellwire-launch-type": "notification", "bellwire-message-id": id}, activated
    assert how == "by its name org.example.By-Name on the bus", how
    assert BELLWIRED not in started["group"], started
    step("LAUNCH activates an app by its name on the bus and tells it the message")
    app.stop()
    started, _, how = app.launched_for("BACKGROUNDLAUNCH")
    assert not app.notes("activated") and BELLWIRED not in started["group"], app.notes("activated")
    assert how == "by its name org.example.By-Name on the bus", how
    step("BACKGROUNDLAUNCH starts it by its name and does not activate it")
    app.stop()
    return app


def by_program():
    app = registered("org.example.By-Program")
    for action, manner in [("LAUNCH", "foreground"), ("BACKGROUNDLAUNCH", "background")]:
        started, id, how = app.launched_for(action)
        unit = rf"app-bellwire-org.example.By\x2dProgram@{id}.service"
        assert how == f"as the unit {unit}", how
        assert started["group"] == f"{OF_ALICE}/app.slice/{unit}", started
        state = properties(unit, "Slice", "MainPID", "Description", "Transient")
        wanted = {"Slice": "app.slice", "MainPID": str(started["pid"]), "Description": "A program", "Transient": "yes"}
        assert state == wanted, state
        environment = {"BELLWIRE_APP": app.id, "BELLWIRE_LAUNCH_TYPE": "notification",
                       "BELLWIRE_LAUNCH_MANNER": manner, "BELLWIRE_MESSAGE_ID": id}
        assert started["environment"] == environment and started["folder"] == "/usr/share/applications", started
        step(f"{action} starts the program of a desktop file in a unit app-bellwire-APP@MESSAGE.service of app.slice")
        if action == "LAUNCH":
            app.stop()
            wait("the unit to be collected", lambda: properties(unit, "LoadState") == {"LoadState": "not-found"})
            step("the unit goes with its program")
    ALICE.run("systemctl", "--user", "stop", "bellwired.service")
    assert properties(unit, "MainPID", "ActiveState") == {"MainPID": str(started["pid"]), "ActiveState": "active"}
    assert Path(f"/proc/{started['pid']}").exists(), "the program ended with bellwired"
    ALICE.run("systemctl", "--user", "start", "bellwired.service")
    PUSH.wait_online()
    step("the program outlives a stop of bellwired")
    app.stop()
    return app


def by_unit():
    app = registered("org.example.Headless")
    for action in ["LAUNCH", "BACKGROUNDLAUNCH"]:
        started, _, how = app.launched_for(action)
        assert how == "as the unit headless.service", how
        assert started["group"] == f"{OF_ALICE}/app.slice/headless.service", started
        assert properties("headless.service", "MainPID") == {"MainPID": str(started["pid"])}
        step(f"{action} starts the unit that a user's manifest names")
        app.stop()
    return app


def late():
    app = registered("org.example.Late")
    _, _, how = app.launched_for("LAUNCH")
    assert how == "as the unit late.service", how
    step("a start is in the history also if the app has its message before the start has ended")
    app.stop()
    return app


def last_resort():
    app = registered("org.example.Last-Resort")
    _, _, how = app.launched_for("BACKGROUNDLAUNCH")
    assert how == "as the unit last-resort.service", how
    step("where activation and the desktop file's program fail, the manifest's unit is started")
    app.stop()
    return app


def not_started(app, what):
    with listening(ALICE, "session", "LaunchFailed") as signals:
        request_id = app.send("BACKGROUNDLAUNCH")
        told = next(signals)
    row = PUSH.wait_hops(request_id, "received", "failed")
    why = row["hops"]["failed"]
    assert "launched" not in row["hops"] and what in why, row
    assert PUSH.app(app.id)["unread"] == 1, PUSH.app(app.id)
    assert told == ["LaunchFailed", [app.id, row["id"], why]], told
    log = ["journalctl", "--user", "--unit=bellwired.service", "--no-pager", "--output=cat"]
    wait("a line in the log", lambda: f"the app was not started: {why}" in ALICE.run(*log))
    step(f"a start that fails leaves the message unread, and why is in its history, a signal and the log: {what}")


def properties(unit, *names):
    lines = ALICE.run("systemctl", "--user", "show", unit, *(f"--property={name}" for name in names)).splitlines()
    return dict(line.split("=", 1) for line in lines)
