"""The checks, inside the machine: those that are named, else all. The first that fails prints what there is to
see and ends them."""

import sys
import traceback

import guide
import machine
import session
import system
import units

CHECKS = {"session": session, "system": system, "units": units, "guide": guide}

try:
    for unit in ("bellwire-server.service", "polkit.service"):
        machine.ROOT.run("systemctl", "start", unit)
    for check in sys.argv[1:] or CHECKS:
        CHECKS[check].check()
except Exception:
    machine.show_all()
    print("not ok -", traceback.format_exc(), flush=True)
    sys.exit(1)
