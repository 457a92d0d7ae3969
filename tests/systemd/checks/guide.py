"""What the guide for integrators says to type, from an empty image to the first push: all of it, as it is written
in the manual page that is installed."""

import gzip
import subprocess
from pathlib import Path

from machine import step

PAGE = Path("/usr/share/man/man7/bellwire-integration.7")
BEGIN, END = "\n.SH FROM AN EMPTY IMAGE TO THE FIRST PUSH\n", "\n.SH CHOOSING THE BUS\n"
# It waits for what has to come, for as long as it takes.
PATIENCE = 120


def check():
    # That of the other checks would go before the guide's.
    Path("/etc/systemd/system/chat.service").unlink(missing_ok=True)
    with open("/etc/hosts", "a") as hosts:
        hosts.write("127.0.0.1 push.example.org\n")
    try:
        typed = subprocess.run(["bash", "-euxc", commands()], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"it waits for ever:\n{(late.stdout or b'').decode()}{(late.stderr or b'').decode()}") from late
    said = typed.stdout + typed.stderr
    assert typed.returncode == 0, said
    *_, last = typed.stdout.rpartition("hello")
    assert "1000" in typed.stdout and "launched" in last and "delivered" in last, said
    step("who types what the guide says has a push, and an app that a push has started")


def commands():
    """What the section has people type."""
    shown = "".join(examples(BEGIN, END))
    assert "bellwire send" in shown and "LAUNCH" in shown, shown
    return shown


def examples(begin, end):
    """The examples of a part of the page, as a reader sees them."""
    page = PAGE.read_text() if PAGE.exists() else gzip.open(f"{PAGE}.gz", "rt").read()
    for written, read in ((r"\-", "-"), (r"\(aq", "'"), (r"\(dq", '"'), (r"\e", "\\")):
        page = page.replace(written, read)
    section = page.partition(begin)[2].partition(end)[0]
    return [part.partition(".EE\n")[0] for part in section.split("\n.EX\n")[1:]]
