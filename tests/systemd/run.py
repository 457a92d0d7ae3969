#!/usr/bin/env python3
"""Boots a machine with a real systemd in a container and lets checks/ look at the programs in it.

    run.py [--programs FOLDER | --packages FOLDER] [session|system|units|guide ...]

FOLDER has bellwire-server, bellwired and bellwire, or their Debian packages; target/debug, or that of
CARGO_TARGET_DIR, if it is not named. Packages are installed; programs, and all that is shipped with them,
are put where packages put them; and then what is below root/. Debian's own packages of the machine are
kept in the target folder, as a tar file; everything else is gone at the end, also after Ctrl-C.

Exit status: 0 all is well, 1 a check failed, 69 the machine cannot be made here, 77 not root.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or SOURCE / "target").resolve()
PROGRAMS = ["bellwire-server", "bellwired", "bellwire"]
PACKAGES = ["systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "libnss-systemd", "polkitd",
            "python3-jeepney", "curl", "openssl"]
# Where the machine has the apps and the checks.
TOOLS = "usr/lib/bellwire-test"
CHECKS = "bellwire-checks.service"
BOOT_S, HALT_S = 60, 30


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--programs", type=Path, default=TARGET / "debug", metavar="FOLDER")
    arguments.add_argument("--packages", type=Path, metavar="FOLDER")
    arguments.add_argument("checks", nargs="*", choices=["session", "system", "units", "guide", []], metavar="CHECK")
    arguments = arguments.parse_args()
    programs = [arguments.programs.resolve() / name for name in PROGRAMS]
    packages = find_packages(arguments.packages) if arguments.packages else []
    if os.geteuid() != 0:
        given = f"--packages {packages[0].parent}" if packages else f"--programs {programs[0].parent}"
        give_up(77, f"a container needs root: sudo {HERE / 'run.py'} {given}")
    if packages:
        programs = []
    for program in programs:
        if not program.is_file():
            give_up(69, f"{program} is missing: cargo build --bins")
    for tool in ("systemd-nspawn", "mmdebstrap", "nsenter"):
        if not shutil.which(tool):
            give_up(69, f"{tool} is missing: apt-get install systemd-container mmdebstrap util-linux")
    with workroom("systemd-test") as folder:
        root = make_root(make_image(), folder / "root", programs, packages)
        with booted(root, folder / "console") as leader:
            return check(leader, arguments.checks)


@contextlib.contextmanager
def workroom(name):
    """A folder that is gone at the end, whatever the end is; one run at a time has one of this name."""
    # So SIGTERM does not end the program before the folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.umask(0o022)
    TARGET.mkdir(parents=True, exist_ok=True)
    with open(TARGET / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in TARGET.glob(f"{name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=TARGET, prefix=f"{name}-") as folder:
            yield Path(folder)


def check(leader, checks):
    """Runs the checks as a unit of the machine; all of them if none is named."""
    # In a session of its own, so that Ctrl-C does not end what waits for the unit before the unit.
    command = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={CHECKS}", "python3",
               f"/{TOOLS}/checks/main.py", *checks]
    checks = subprocess.Popen([*inside(leader), *command], start_new_session=True)
    try:
        return checks.wait()
    finally:
        subprocess.run([*inside(leader), "systemctl", "stop", CHECKS], stderr=subprocess.DEVNULL)
        checks.wait()


def give_up(status, why):
    print(f"{Path(sys.argv[0]).name}: {why}", file=sys.stderr)
    sys.exit(status)


def make_image():
    """The packages of the machine in a tar file, of the release of Debian that this machine has."""
    suite = debian()
    key = hashlib.sha256(" ".join([suite, *PACKAGES]).encode()).hexdigest()[:16]
    image = TARGET / f"systemd-root-{key}.tar"
    if not image.exists():
        for old in TARGET.glob("systemd-root-*.tar"):
            old.unlink()
        print(f"making the packages of the machine: Debian {suite} in {image}", file=sys.stderr, flush=True)
        part = TARGET / "systemd-root.part.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
                   "--aptopt=Acquire::Retries 3", suite, part]
        # It must not be killed: it unmounts and removes what it has begun.
        mmdebstrap = subprocess.Popen(command, start_new_session=True)
        try:
            if mmdebstrap.wait() != 0:
                give_up(69, "mmdebstrap could not make it")
            part.rename(image)
        finally:
            mmdebstrap.terminate()
            mmdebstrap.wait()
            part.unlink(missing_ok=True)
    return image


def debian():
    lines = Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        give_up(69, "this test knows Debian only")
    return release["VERSION_CODENAME"]


def find_packages(folder):
    """The newest packages of our programs there."""
    found = [sorted(folder.resolve().glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime) for name in PROGRAMS]
    if not all(found):
        give_up(69, f"{folder} lacks packages of {' or '.join(PROGRAMS)}: make deb")
    return [files[-1] for files in found]


def install(programs, packages, root):
    """Installs packages, or programs, before the machine runs."""
    if not packages:
        places = {"DESTDIR": root, "PREFIX": "/usr", "PROGRAMS": programs[0].parent, "WRITERS": ""}
        subprocess.run([SOURCE / "packaging/install.sh", *PROGRAMS], check=True, env={**os.environ, **places})
        return
    for package in packages:
        put(package, root / TOOLS / "packages" / package.name)
    inside_names = (f"/{TOOLS}/packages/{package.name}" for package in packages)
    subprocess.run(["chroot", root, "dpkg", "--install", *inside_names], check=True, stdout=subprocess.DEVNULL)


def make_root(image, root, programs, packages):
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xf", image], check=True)
    install(programs, packages, root)
    for folder, place in [(HERE / "root", root), (HERE / "checks", root / TOOLS / "checks")]:
        for file in folder.rglob("*"):
            if file.is_file():
                put(file, place / file.relative_to(folder))
    return root


def put(file, place):
    """Copies a file; everybody may read it, whatever the mode of the source."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)
    place.chmod(0o755 if os.access(file, os.X_OK) else 0o644)


@contextlib.contextmanager
def booted(root, console):
    """The machine while it runs; gives the id of its first process."""
    with own_control_group() as enter, open(console, "wb") as log:
        # The machine must not outlive us, however we end.
        nspawn = ["setpriv", "--pdeathsig", "TERM", "--", "systemd-nspawn", "--quiet", f"--directory={root}", "--boot",
                  "--register=no", f"--machine=bellwire-test-{os.getpid()}", "--private-network", "--console=pipe"]
        if not systemd_runs_here():
            nspawn.append("--keep-unit")
        # In a session of its own, or Ctrl-C would halt it before we have looked.
        process = subprocess.Popen(nspawn, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=log, start_new_session=True, preexec_fn=enter)
        try:
            yield wait_booted(process, console)
        finally:
            halt(process)


def systemd_runs_here():
    return Path("/run/systemd/system").is_dir()


@contextlib.contextmanager
def own_control_group():
    """Without a systemd here that gives the machine a control group, it needs one that is no other machine's.
    Gives what a process does to enter it."""
    tops = [] if systemd_runs_here() else [Path("/sys/fs/cgroup", name) for name in ("systemd", "unified", "")]
    tops = [top for top in tops if (top / "cgroup.procs").exists()]
    groups = [top / f"bellwire-test-{os.getpid()}" for top in tops]
    for left in (left for top in tops for left in top.glob("bellwire-test-*")):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            remove_control_group(left)
    try:
        for group in groups:
            group.mkdir()
    except OSError as error:
        give_up(69, f"a control group cannot be made for the machine: {error}")
    try:
        yield lambda: [(group / "cgroup.procs").write_text("0") for group in groups]
    finally:
        for group in groups:
            remove_control_group(group)


def remove_control_group(group):
    for folder, _, _ in os.walk(group, topdown=False):
        os.rmdir(folder)


def wait_booted(process, console):
    deadline = time.monotonic() + BOOT_S
    while process.poll() is None and time.monotonic() < deadline:
        leader = first_process(process.pid)
        if leader:
            state = subprocess.run([*inside(leader), "systemctl", "is-system-running"], capture_output=True, text=True)
            if state.stdout.strip() in ("running", "degraded"):
                return leader
        time.sleep(0.1)
    sys.stdout.write(console.read_text(errors="replace"))
    give_up(69, "the machine did not boot")


def first_process(nspawn):
    with contextlib.suppress(FileNotFoundError):
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        return int(children[0]) if children else None


def inside(leader):
    return ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]


def halt(process):
    """Ends the machine in order; by force after a while."""
    for impatience in (signal.SIGINT, signal.SIGTERM):
        signal.signal(impatience, signal.SIG_IGN)
    leader = first_process(process.pid)
    process.terminate()
    try:
        process.wait(HALT_S)
    except subprocess.TimeoutExpired:
        print("the machine does not halt and is killed", file=sys.stderr)
        if leader:
            os.kill(leader, signal.SIGKILL)
        process.kill()
        process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
