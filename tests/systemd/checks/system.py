"""On the system bus: who may be an app and who may manage, and a system unit that a message starts."""

import shutil
import subprocess

from machine import ALICE, BELLWIRE, BOB, ROOT, TOOLS, App, CallError, Push, listening, step, values, wait

PUSH = Push("system", ROOT)
CHAT, VAULT = "org.example.Chat", "org.example.Vault"
RULES = "/etc/polkit-1/rules.d"


def check():
    ROOT.run("systemctl", "start", "bellwired.service")
    PUSH.wait_online()
    assert BELLWIRE.call("system", "Manager1.GetStatus"), "the daemon's own user may look"
    step("bellwired is online as a system unit of the user bellwire")
    manifests()
    users()
    units()
    apps = [by_unit(), by_name()]
    privacy(apps[0])
    managers()
    for app in apps:
        app.check_starts()
    step("each start was one process, and nothing was started later")
    ROOT.run("systemctl", "stop", "bellwired.service")


def connect(user, app, within=()):
    return user.call("system", "Push1.Connect", "soa{sv}", app, "/app", {}, within=within)


def refused(user, app, within=()):
    return user.refused("system", "Push1.Connect", "soa{sv}", app, "/app", {}, within=within)


def manifests():
    for user in (ALICE, ROOT):
        assert "needs a manifest" in refused(user, "org.example.Unknown")
    assert "needs a manifest" in refused(ALICE, "org.example.Headless")
    assert "does not say who may connect" in refused(ALICE, "org.example.Broken")
    step("an app without a manifest is refused, and a user's own manifest is none; so is one that allows nobody")
    assert "security label" in refused(ALICE, "org.example.Labelled")
    step("a manifest that names a label refuses a caller of which the bus tells none")


def users():
    assert connect(ALICE, CHAT) == ["unregistered", ""]
    ALICE.call("system", "Push1.SetBadge", "su", CHAT, 3)
    for user in (BOB, ROOT):
        assert "another user" in refused(user, CHAT)
        assert "another user" in user.refused("system", "Push1.SetBadge", "su", CHAT, 7)
        assert "another user" in user.refused("system", "Push1.GetBadge", "s", CHAT)
    assert ALICE.call("system", "Push1.GetBadge", "s", CHAT) == [3]
    step("alice may be the app that a manifest gives her; bob and root may not, nor see or set its badge")


def units():
    # systemd-run gives these a unit of that name: of the system, of alice's user manager, and one that
    # makes a control group of that name below its own.
    in_system = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={ALICE.entry.pw_uid}"]
    assert connect(ROOT, VAULT, [*in_system, "--unit=vault.service"]) == ["unregistered", ""]
    assert "another systemd unit" in refused(ROOT, VAULT, [*in_system, "--unit=other.service"])
    assert "another systemd unit" in refused(ALICE, VAULT)
    step("a process in the system unit that a manifest names may be the app; the same user outside it may not")
    of_user = ["systemd-run", "--user", "--quiet", "--wait", "--pipe", "--collect", "--unit=vault.service"]
    assert "another systemd unit" in refused(ALICE, VAULT, of_user)
    step("nor may a user unit of that name")
    below = [*in_system, "--unit=other.service", "--property=Delegate=yes", f"{TOOLS}/below.sh", "vault.service"]
    assert "another systemd unit" in refused(ROOT, VAULT, below)
    step("nor may a process of another unit that has made itself a control group of that name")


def by_unit():
    app = App(PUSH, CHAT)
    app.register("systemctl", "start", "chat.service")
    first = app.send("BACKGROUNDLAUNCH")
    row = PUSH.wait_hops(first, "received", "failed")
    assert PUSH.app(CHAT)["unread"] == 1 and not app.notes("started"), row
    step(f"without a rule of polkit bellwired may not start a system unit, and says so: {row['hops']['failed']}")
    allow("start-chat.rules")
    wait("polkit to have read the rule", lambda: may_start("chat.service"))
    assert not may_start("vault.service")
    for action in ["BACKGROUNDLAUNCH", "LAUNCH"]:
        started, _, how = app.launched_for(action)
        assert how == "as the unit chat.service", how
        assert started["group"] == "/system.slice/chat.service", started
        if action == "BACKGROUNDLAUNCH":
            waited, newest = (note["members"] for note in app.notes("message"))
            assert waited["id"] == row["id"] and "launch_type" not in waited, (waited, newest)
        step(f"with one, {action} starts the system unit chat.service, and its app gets what waits")
        app.stop()
    return app


def by_name():
    app = App(PUSH, "org.example.Radio")
    app.register("systemctl", "start", "radio.service")
    for action, activated in [("BACKGROUNDLAUNCH", 0), ("LAUNCH", 1)]:
        started_by_name(app, action, activated)
        step(f"{action} starts an app by its name on the bus")
    shutil.copy(f"{TOOLS}/quiet-radio.conf", "/etc/dbus-1/system.d")
    ROOT.run("systemctl", "reload", "dbus.service")
    started_by_name(app, "LAUNCH", 0)
    step("LAUNCH starts by its name also an app that nobody may call")
    return app


def started_by_name(app, action, activated):
    started, _, how = app.launched_for(action)
    assert how == "by its name org.example.Radio on the bus" and len(app.notes("activated")) == activated, how
    assert started["group"] == "/system.slice/radio.service", started
    app.stop()


def privacy(app):
    said = ["Alert", "BadgeChanged"]
    with listening(BELLWIRE, "system", *said) as own, listening(ALICE, "system", *said) as others:
        app.send("ALERT&alertMessage=hush")
        name, (of, _, alert) = next(own)
        assert (name, of, values(alert)["text"]) == ("Alert", app.id, "hush"), (name, alert)
        ALICE.call("system", "Push1.SetBadge", "su", app.id, 9)
        badge = ["BadgeChanged", [app.id, 9]]
        assert (next(own), next(others)) == (badge, badge)
    step("without a notification server the alert is a signal for the device's shell, which no other user hears")


def may_start(unit):
    """Whether polkit lets bellwired start a unit."""
    pid = ROOT.run("systemctl", "show", "--property=MainPID", "--value", "bellwired.service").strip()
    asked = ["pkcheck", "--action-id", "org.freedesktop.systemd1.manage-units", "--process", pid,
             "--detail", "unit", unit, "--detail", "verb", "start"]
    return subprocess.run(asked, capture_output=True).returncode == 0


def managers():
    assert BOB.refused("system", "Manager1.GetStatus")
    allow("bob-manages.rules")
    wait("bob to be allowed", lambda: may(BOB))
    assert not may(ALICE)
    step("bob may manage once a rule of polkit lets him, and alice may not")


def allow(rule):
    shutil.copy(f"/usr/share/bellwire-test/{rule}", RULES)


def may(user):
    try:
        return user.call("system", "Manager1.GetStatus")
    except CallError as error:
        assert error.name == "org.bellwire.Error.PermissionDenied", error
        return None
