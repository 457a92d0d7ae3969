"""All checks, inside the machine. The first that fails prints what there is to see and ends them."""

import sys
import traceback

import machine
import session
import system
import units

try:
    for unit in ("bellwire-server.service", "polkit.service"):
        machine.ROOT.run("systemctl", "start", unit)
    session.check()
    system.check()
    units.check()
except Exception:
    machine.show_all()
    print("not ok -", traceback.format_exc(), flush=True)
    sys.exit(1)
