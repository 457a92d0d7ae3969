#!/bin/sh
# Tries the script with which devices without systemd start the agent, in a root that has it, the agent and busybox:
#
#     unshare --mount --pid --fork --kill-child tests/packages/init.sh ROOT
#
# All that it starts ends with it. It needs root, prints what holds, and fails at the first thing that does not.
set -eu

INIT=/etc/init.d/S95bellwired
CONFIG=/etc/bellwire/agent.toml
SAID=/var/log/messages
# For whatever is waited for, in tenths of a second.
DEADLINE=300

# In the root every program is busybox's, but the agent, the bus and what makes the user.
enter() {
    command -v busybox >/dev/null || { echo "init.sh: busybox is missing: apt-get install busybox" >&2; exit 69; }
    mount -t proc proc "$1/proc"
    cp "$(command -v busybox)" "$1/bin/busybox"
    ln -sf busybox "$1/bin/sh"
    mkdir -p "$1/applets" "$1/run/dbus" "$1/var/lib/bellwire"
    cp "$0" "$1/init-test"
    chroot "$1" busybox --install -s /applets
    chroot "$1" systemd-sysusers bellwired.conf
    chroot "$1" chown bellwire:bellwire /var/lib/bellwire
    exec chroot "$1" /usr/bin/env -i PATH=/applets:/usr/sbin:/usr/bin /bin/sh /init-test
}

fail() {
    echo "not ok - $*" >&2
    cat "$SAID" >&2
    exit 1
}

# Waits until the command is true.
wait_for() {
    tenths=0
    until "$@"; do
        tenths=$((tenths + 1))
        [ "$tenths" -lt "$DEADLINE" ] || fail "waited for: $*"
        sleep 0.1
    done
}

said() { grep -q "$1" "$SAID"; }
said_times() { [ "$(grep -c "$1" "$SAID")" -ge "$2" ]; }
forget() { : > "$SAID"; }
number() { pidof bellwired; }
runs() { [ -n "$(number)" ]; }
is_away() { ! runs; }
nothing_is_left() { is_away && ! pidof logger >/dev/null && [ -z "$(ls /var/run/bellwired* 2>/dev/null)" ]; }
# Whoever has stopped it need not wait; logger reads to the end.
has_stopped() {
    is_away || fail "it was not stopped: $(ps)"
    wait_for nothing_is_left
}

# Another one than $1 is ready, as the same user.
came_back() {
    new=$(number) && [ "$new" != "$1" ] && said_times " ready " "$2" && [ "$(stat -c %U "/proc/$new")" = bellwire ]
}

starts() {
    forget
    "$INIT" start
    wait_for said " ready "
    first=$(number)
    "$INIT" start
    [ "$(number)" = "$first" ] || fail "a second start has started a second one"
    echo "ok - it is started once, as its user, and what it says is in the system's log"
}

comes_back() {
    for times in 2 3; do
        first=$(number)
        kill -9 "$first"
        wait_for came_back "$first" "$times"
    done
    said "ended with status 137 and is started again in 1 s" || fail "the first pause"
    said "ended with status 137 and is started again in 2 s" || fail "the second pause"
    echo "ok - one that is killed is started again, after growing pauses"
}

reloads() {
    first=$(number)
    "$INIT" reload
    wait_for said "the configuration was read again"
    [ "$(number)" = "$first" ] || fail "the reload was a start"
    echo "ok - a reload is one of the agent"
}

stops() {
    "$INIT" stop
    has_stopped
    ! "$INIT" stop || fail "what does not run was stopped"
    # In the pause there is no agent, and the loop has to end.
    forget
    "$INIT" start
    wait_for said " ready "
    kill -9 "$(number)"
    wait_for said "is started again in 1 s"
    "$INIT" stop
    has_stopped
    # Somebody has ended the loop alone.
    forget
    "$INIT" start
    wait_for said " ready "
    kill -9 "$(cat /var/run/bellwired-loop.pid)"
    "$INIT" stop
    has_stopped
    echo "ok - a stop ends the agent and what would start it again"
}

hangs() {
    forget
    "$INIT" start
    wait_for said " ready "
    kill -STOP "$(number)"
    timeout "$((DEADLINE / 10))" "$INIT" stop || fail "a stop of one that hangs does not end: $(ps)"
    has_stopped
    echo "ok - a stop ends one that hangs"
}

# It never starts again after these: its loop has gone.
stays_ended() {
    forget
    echo "gatway = 1" > "$CONFIG"
    "$INIT" start
    wait_for said "ended with status 78 and stays so"
    wait_for nothing_is_left
    said "unknown field .gatway" || fail "nothing says why"
    ! said "started again" || fail "it was started again"
    : > "$CONFIG"
    forget
    "$INIT" start
    wait_for said " ready "
    kill "$(number)"
    wait_for said "ended with status 0 and stays so"
    wait_for nothing_is_left
    echo "ok - one whose configuration is wrong stays ended, and so does one that was told to end"
}

[ $# = 0 ] || enter "$@"
mkdir -p "${SAID%/*}"
syslogd -S -O "$SAID"
dbus-daemon --system
wait_for [ -S /dev/log ]
: > "$CONFIG"
starts
comes_back
reloads
stops
hangs
stays_ended
