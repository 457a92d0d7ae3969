#!/usr/bin/env python3
"""Builds the packages twice and tries them as those do who get them: their bytes, their files, what linters say,
and an installation with its upgrade and its end in a new root of this machine's release of Debian.

    run.py [--built FOLDER] [CHECK ...]

FOLDER is a target folder in which `make deb rpm` has put packages: these are tried, and none are built. CHECK is
one of the functions that main() names, all of them if none is. What is below the target folder for this is gone at the end, but the packages of the root, which tests/systemd has too.

Exit status: 0 all is well, 1 a check failed, 69 something cannot be had here, 77 not root.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or SOURCE / "target").resolve()
VERSION = tomllib.loads((SOURCE / "Cargo.toml").read_text())["package"]["version"]
NEXT = "9.0.0~test"
PACKAGES = ["bellwired", "bellwire-server", "bellwire"]
ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8"}

# How a root of Debian is made is known there.
sys.dont_write_bytecode = True
spec = importlib.util.spec_from_file_location("machine", HERE.parent / "systemd/run.py")
machine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(machine)


class Failure(Exception):
    """Something is not as it has to be."""


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--built", type=Path, metavar="FOLDER")
    arguments.add_argument("checks", nargs="*", metavar="CHECK")
    arguments = arguments.parse_args()
    if os.geteuid() != 0:
        machine.give_up(77, f"a root of Debian needs root: sudo {HERE / 'run.py'}")
    with machine.workroom("packages-test") as folder:
        work = Work(folder, arguments.built.resolve() if arguments.built else None)
        checks = [] if arguments.built else [same_bytes]
        checks += [no_folder_of_this_machine, lists, libc, lint_debs, lint_rpms, debian, debian_without_systemd, rpm_root,
                   archive, tizen, yocto, buildroot]
        return check(work, [one for one in checks if not arguments.checks or one.__name__ in arguments.checks])


def check(work, checks):
    failed = 0
    for one in checks:
        try:
            one(work)
            print(f"ok {one.__name__}", flush=True)
        except Failure as failure:
            failed += 1
            print(f"FAILED {one.__name__}: {failure}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


class Work:
    """The packages that are tried, and room for trying them."""

    def __init__(self, folder, built):
        self.folder = folder
        self.target = built or build(folder, 0)
        # The programs of the packages, which write their pages themselves.
        self.programs = self.target / "release"

    def debs(self):
        return [one(self.target / "deb", f"{package}_{VERSION}-*.deb") for package in PACKAGES]

    def rpms(self):
        return [one(self.target / "rpm", f"{package}-{VERSION}-*.rpm") for package in PACKAGES]

    def room(self, name):
        room = self.folder / name
        room.mkdir()
        return room


def one(folder, pattern):
    found = sorted(folder.glob(pattern))
    expect(len(found) == 1, f"{pattern} in {folder}: {[path.name for path in found]}")
    return found[0]


def expect(is_so, otherwise):
    if not is_so:
        raise Failure(otherwise)


def run(*command, **options):
    """What a command prints; a failure if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          **{"env": ENVIRONMENT, **options})
    expect(done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder, number):
    """Builds the packages in a copy of the source, in a folder of another depth for each number, with all that
    cargo keeps elsewhere."""
    place = folder / "/".join(["build", *["deeper"] * number, f"source{number}"])
    names = run("git", "-C", SOURCE, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if (SOURCE / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, place / name)
    target = folder / f"target{number}"
    target.mkdir()
    # What makes the packages is the same for all.
    run(SOURCE / "tests/setup.sh", "package", "true", env={**ENVIRONMENT, "CARGO_TARGET_DIR": str(TARGET)})
    (target / "tools").symlink_to(TARGET / "tools")
    home = folder / f"home{number}"
    kept = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    home.mkdir()
    for part in kept.iterdir():
        if part.name in ("config.toml", "credentials.toml"):
            shutil.copy(part, home)
    (home / "registry").mkdir()
    # What was fetched is fetched; the sources are unpacked again, and have another name.
    for part in ("cache", "index"):
        if (kept / "registry" / part).exists():
            (home / "registry" / part).symlink_to(kept / "registry" / part)
    toolchain = os.environ.get("RUSTUP_HOME") or str(Path.home() / ".rustup")
    changed = run("git", "-C", SOURCE, "log", "-1", "--format=%ct").strip()
    print(f"building the packages in {place}", file=sys.stderr, flush=True)
    run("make", "-C", place, "deb", "rpm", env={
        **ENVIRONMENT, "CARGO_TARGET_DIR": str(target), "CARGO_HOME": str(home), "RUSTUP_HOME": toolchain,
        "SOURCE_DATE_EPOCH": changed})
    return target


def same_bytes(work):
    """The same source gives the same packages, wherever it is built."""
    other = build(work.folder, 1)
    for first in [*work.debs(), *work.rpms()]:
        second = other / first.relative_to(work.target)
        sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
        expect(sums[0] == sums[1], f"{first.name}: {sums}")
        print(f"   {sums[0]}  {first.name}")
    shutil.rmtree(other)


def no_folder_of_this_machine(work):
    """No file of a package names a folder in which it was built."""
    room = work.room("unpacked")
    names = {str(SOURCE), str(TARGET), str(work.folder), str(work.target), str(Path.home())}
    names |= {os.environ.get("CARGO_HOME") or str(Path.home() / ".cargo")}
    # A home as /root is too short to be looked for alone.
    names = {name if name.count("/") > 1 else name + "/." for name in names}
    for package in [*work.debs(), *work.rpms()]:
        place = room / package.name
        unpack(package, place)
        for file in files(place):
            data = (place / file.lstrip("/")).read_bytes()
            for name in names:
                expect(name.encode() not in data, f"{package.name}: {file} names {name}")
    shutil.rmtree(room)


def unpack(package, place):
    place.mkdir(parents=True)
    if package.suffix == ".deb":
        run("dpkg-deb", "--raw-extract", package, place)
    else:
        archive = subprocess.run(["rpm2archive", "--nocompression", "-"], stdin=package.open("rb"), check=True,
                                 capture_output=True).stdout
        subprocess.run(["tar", "-C", place, "-x"], input=archive, check=True)


def files(folder):
    """What is in a folder, as it will be called."""
    return sorted(f"/{path.relative_to(folder)}" for path in folder.rglob("*") if not path.is_dir())


def lists(work):
    """No file is in two packages, and all of them are what `make install` lays out, with the same modes."""
    for kind, style, packages in [("deb", "debian", work.debs()), ("rpm", "", work.rpms())]:
        tree = work.room(f"tree-{kind}")
        run(SOURCE / "packaging/install.sh", *PACKAGES, env={
            **ENVIRONMENT, "PROGRAMS": str(work.programs), "WRITERS": str(work.programs), "DESTDIR": str(tree),
            "PREFIX": "/usr", "STYLE": style})
        expected = {file: stat.S_IMODE((tree / file.lstrip("/")).stat().st_mode) for file in files(tree)}
        if kind == "deb":
            # Of cargo-deb.
            expected |= {f"/usr/share/doc/{package}/copyright": 0o644 for package in PACKAGES}
        found = {}
        for package in packages:
            for file, mode in listed(package):
                file = file.removesuffix(".gz") if "/man/" in file else file
                expect(file not in found, f"{file} is in two packages, {package.name} is one")
                found[file] = mode
        expect(found == expected, f"{kind}: {set(found.items()) ^ set(expected.items())}")
    folders_have_owners(work.rpms(), tree)


# What is there without any of ours: of the system, and of the systemd that they require.
FOLDERS = ["/etc", "/usr", "/usr/bin", "/usr/lib", "/usr/share", "/usr/share/doc", "/usr/share/man", "/usr/lib/systemd",
           "/usr/lib/sysusers.d", "/usr/lib/tmpfiles.d"]


def folders_have_owners(packages, tree):
    """Who removes the RPM packages has none of their folders left. Debian's own all of theirs."""
    owned = set()
    for package in packages:
        for line in run("rpm", "-qp", "--queryformat", "[%{FILEMODES:perms} %{FILEFLAGS:fflags} %{FILENAMES}\n]",
                        package).splitlines():
            mode, *flags, name = line.split()
            owned |= {name} if mode[0] == "d" else set()
            expect(mode[0] != "d" or mode == "drwxr-xr-x", f"{package.name}: {line}")
            expect("LICENSE-" not in name or "l" in flags[0], f"{package.name} has no licence in {name}")
        units = any("/systemd/" in name for name, _ in listed(package))
        needs = run("rpm", "-qp", "--queryformat", "[%{REQUIRENAME} %{REQUIREFLAGS:deptype}\n]", package)
        expect(units == ("systemd post" in needs), f"{package.name} needs {needs}")
        agent = any(name.endswith("/bellwired.service") for name, _ in listed(package))
        expect(agent == ("dbus manual" in needs.splitlines()), f"{package.name} needs {needs}")
    laid_out = {f"/{path.relative_to(tree)}" for path in tree.rglob("*") if path.is_dir()}
    nobodys = {name for name in laid_out - owned
               if name not in FOLDERS and not name.startswith(("/usr/lib/systemd/", "/usr/share/man/man"))}
    expect(not nobodys, f"no package owns {nobodys}")
    expect("/etc/bellwire" in owned and not owned & set(FOLDERS), f"owned: {owned}")


def listed(package):
    """The files of a package, with their modes."""
    if package.suffix == ".deb":
        for line in run("dpkg-deb", "--contents", package).splitlines():
            mode, owner, _, _, _, name = line.split(None, 5)
            expect(owner in ("root/root", "0/0"), f"{package.name}: {line}")
            if mode[0] == "-":
                yield name.removeprefix("."), mode_of(mode)
    else:
        query = "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}\n]"
        for line in run("rpm", "-qp", "--queryformat", query, package).splitlines():
            name, mode, owner = line.split()
            expect(owner == "root", f"{package.name}: {line}")
            if mode[0] == "-":
                yield name, mode_of(mode)


def mode_of(text):
    return sum(1 << (8 - at) for at, letter in enumerate(text[1:10]) if letter != "-")


def libc(work):
    """A package asks for a C library in which its program starts."""
    for deb, package in zip(work.debs(), PACKAGES):
        needs = set(re.findall(r"GLIBC_([0-9A-Z_.]+)", run("readelf", "--version-info", work.programs / package)))
        # What packed addresses need has a name of its own, and came with this version.
        needs = {"2.36" if name == "ABI_DT_RELR" else name for name in needs}
        newest = max(tuple(map(int, version.split("."))) for version in needs)
        asked = re.search(r"libc6 \(>= ([0-9.]+)", run("dpkg-deb", "--field", deb, "Depends"))
        expect(asked and tuple(map(int, asked[1].split("."))) >= newest, f"{deb.name} asks for {asked}, not {newest}")


def lint_debs(work):
    for package in work.debs():
        said = run("lintian", "--allow-root", "--no-cfg", "--profile", "debian", "--fail-on", "error,warning",
                   "--suppress-tags-from-file", HERE / "lintian-tags", package)
        print(said, end="")


def lint_rpms(work):
    said = run("rpmlint", "--config", HERE / "rpmlint.toml", *work.rpms(), SOURCE / "cross/tizen/bellwire.spec")
    verdict = said.strip().splitlines()[-1]
    expect(" 0 errors, 0 warnings" in verdict, said)


class Root:
    """A Debian of this machine's release in a folder, without anything that runs."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        subprocess.run(["tar", "-C", folder, "-xf", machine.make_image()], check=True)

    def run(self, *command, **options):
        return run("chroot", self.folder, *command, **options)

    def install(self, packages):
        for package in packages:
            shutil.copy(package, self.folder / "tmp")
        names = [f"/tmp/{package.name}" for package in packages]
        self.run("dpkg", "--force-confold", "--install", *names, env={**ENVIRONMENT, "DEBIAN_FRONTEND": "noninteractive"})

    def path(self, place):
        return self.folder / place.lstrip("/")

    def units(self):
        """What is said of our units: name, state, preset."""
        for kind in ("system", "user"):
            scope = [] if kind == "system" else ["--global"]
            said = run("systemctl", *scope, f"--root={self.folder}", "list-unit-files", "--no-legend", "--plain",
                       "bellwire*")
            for line in said.splitlines():
                yield (kind, *line.split())


def debian(work):
    """The packages are installed, upgraded with what they keep, removed and purged."""
    root = Root(work.folder / "debian")
    root.install(work.debs())
    said = root.run("dpkg", "--audit") + root.run("dpkg", "--verify", *PACKAGES)
    expect(said == "", said)
    presets_hold(root)
    expect(root.run("getent", "passwd", "bellwire").startswith("bellwire:"), "no user")
    for program in PACKAGES:
        expect(VERSION in root.run(program, "--version"), f"{program} does not know its version")
        page = root.run("sh", "-c", f"zcat /usr/share/man/man1/{program}.1.gz")
        expect(".TH" in page, f"no page of {program}")
    has_its_state(root)
    # An operator sets something, and an app is known.
    server = ("runuser", "-u", "bellwire", "--", "bellwire-server")
    configuration = root.path("/etc/bellwire/server.toml")
    configuration.write_text(configuration.read_text().replace("# body-bytes = 4096", "body-bytes = 8192"))
    root.run(*server, "app", "add", "org.example.chat")
    before = root.run(*server, "--json", "app", "list")
    expect("org.example.chat" in before, before)

    root.install(next_version(work))
    expect(NEXT in root.run("dpkg-query", "-W", "-f", "${Version}", "bellwire-server"), "it was not upgraded")
    expect(root.run(*server, "--json", "app", "list") == before, "the store did not stay")
    expect("body-bytes = 8192" in configuration.read_text(), "the configuration did not stay")
    presets_hold(root)
    # There is a second server, of whatever name.
    instance = root.path("/etc/bellwire/server-trial.toml")
    instance.write_text('state-folder = "/var/lib/bellwire/trial"\n')
    root.run("install", "-d", "-o", "bellwire", "/var/lib/bellwire/trial")
    root.run(*server, "--config", "/etc/bellwire/server-trial.toml", "app", "add", "org.example.trial")
    root.run("systemctl", "enable", "bellwire-server@trial.service")
    link = root.path("/etc/systemd/system/multi-user.target.wants/bellwire-server@trial.service")
    expect(link.is_symlink(), "the instance is not enabled")

    root.run("dpkg", "--remove", *PACKAGES)
    expect(not root.path("/usr/bin/bellwired").exists(), "the program did not go")
    expect(root.path("/var/lib/bellwire/server.db").exists(), "the store went with the program")
    expect("body-bytes = 8192" in configuration.read_text(), "the configuration went with the program")
    expect(root.path("/var/lib/bellwire/trial/server.db").exists() and link.is_symlink(), "the instance went")
    state = root.path("/var/lib/bellwire")
    # As the guide has it copied before an update.
    (state / "before").mkdir()
    for copy in ("agent.db", "before/agent.db", "before/agent.db-wal"):
        (state / copy).touch()
    # Folders that are not the server's to remove: one that is somebody else's, and one on a disk of its own.
    for folder in ("lost+found", "04"):
        (state / folder).mkdir()
    run("unshare", "--mount", "sh", "-euc", 'mount -t tmpfs none "$1/04"; touch "$1/04/server.db"; '
        'chroot "$0" dpkg --purge bellwire-server; [ ! -e "$1/04/server.db" ]', root.folder, state)
    stay = [path for path in files(state) if not path.rpartition("/")[2].startswith("agent.db")]
    expect(not stay and not link.is_symlink(), f"the server's stayed: {stay}")
    expect(not (state / "trial").exists(), "the folder of the instance stayed")
    for folder in ("lost+found", "04"):
        (state / folder).rmdir()
    # Which is the operator's own.
    instance.unlink()
    expect((state / "agent.db").exists(), "the store of the agent went with the server")
    root.run("dpkg", "--purge", "bellwired", "bellwire")
    expect(not state.exists(), f"the folder of the state stayed, with {files(state)}")
    left = [path for path in files(root.folder) if "bellwire" in path and not path.startswith("/tmp/")]
    expect(left == [], f"left behind: {left}")
    shutil.rmtree(root.folder)


def presets_hold(root):
    units = list(root.units())
    expect(len(units) >= 5, f"units: {units}")
    for kind, name, state, preset, *_ in units:
        expect(state == preset or (state, preset) in [("alias", "-"), ("alias", "")],
               f"{kind} {name} is {state}, its preset says {preset}")


def has_its_state(root):
    state = root.path("/var/lib/bellwire").stat()
    expect(stat.S_IMODE(state.st_mode) == 0o700 and state.st_uid != 0, f"the folder of the state: {state}")


def next_version(work):
    """The same packages with a later version."""
    run(SOURCE / "packaging/make.sh", "deb", *PACKAGES, "--", "--deb-version", NEXT, env={
        **ENVIRONMENT, "CARGO_TARGET_DIR": str(work.target), "PROGRAMS": str(work.programs),
        "WRITERS": str(work.programs)})
    room = work.room("next")
    made = [one(work.target / "deb", f"{package}_{NEXT}_*.deb") for package in PACKAGES]
    return [Path(shutil.move(package, room)) for package in made]


def debian_without_systemd(work):
    """A container has no systemd: apt takes what they depend on, and nothing fails."""
    root = work.folder / "container"
    wanted = ",".join(["systemd-standalone-sysusers", *map(str, work.debs())])
    run("mmdebstrap", "--quiet", "--variant=minbase", "--aptopt=Acquire::Retries 3", f"--include={wanted}",
        "--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount", machine.debian(), root)
    expect(not (root / "usr/bin/systemctl").exists(), "there is a systemd")
    # Nothing is installed there that is only recommended.
    expect((root / "usr/bin/dbus-daemon").exists(), "there is no bus")
    expect("bellwire" in run("chroot", root, "getent", "passwd", "bellwire"), "no user")
    run("chroot", root, "bellwire-server", "check")
    shutil.rmtree(root)


def rpm_root(work):
    """The RPM packages fill an empty root, and their scripts run in one that has a shell and systemd."""
    empty = work.room("empty")
    run("rpm", "--root", empty, "--install", "--nodeps", "--noscripts", *work.rpms())
    expect((empty / "usr/bin/bellwired").exists(), "no program")
    expect(run("rpm", "--root", empty, "--verify", "--nodeps", *PACKAGES) == "", "they are not as they were")
    root = Root(work.folder / "rpm")
    run("rpm", "--root", root.folder, "--install", "--nodeps", *work.rpms())
    expect(root.run("getent", "passwd", "bellwire").startswith("bellwire:"), "no user")
    presets_hold(root)
    root.run("systemctl", "enable", "bellwire-server@03.service")
    run("rpm", "--root", root.folder, "--erase", *PACKAGES)
    left = [path for path in root.folder.rglob("*bellwire*") if not path.is_relative_to(root.path("/var/lib"))]
    expect(not left, f"left behind: {left}")
    expect(not list(root.folder.glob("etc/systemd/system/**/bellwire*")), "a unit is still enabled")
    shutil.rmtree(root.folder)


def archive(work):
    """The source with its crates is always the same bytes, and needs nothing that is fetched."""
    without_git = work.room("without-git")
    shutil.copytree(SOURCE / "cross", without_git / "cross")
    refused = subprocess.run([without_git / "cross/source.sh", without_git / "out"], capture_output=True, text=True)
    expect(refused.returncode == 69 and "no checkout of git" in refused.stderr, f"without git: {refused}")
    shutil.rmtree(without_git)
    sums = [run(SOURCE / "cross/source.sh", work.folder / name) for name in ("archive", "again")]
    expect(sums[0] == sums[1], f"{sums}")
    shutil.rmtree(work.folder / "again")
    room = work.room("extracted")
    run("tar", "-C", room, "-xzf", one(work.folder / "archive", "*.tar.gz"))
    run("cargo", "metadata", "--offline", "--locked", "--format-version", "1", cwd=room / f"bellwire-{VERSION}",
        env={**ENVIRONMENT, "CARGO_HOME": str(room / "home")})
    shutil.rmtree(room)


# How C is compiled for devices wherever it is, of cross/config.toml.
COMPILED = tomllib.loads((SOURCE / "cross/config.toml").read_text())["env"]
SQLITE = COMPILED["LIBSQLITE3_FLAGS"].split()
TIMES = COMPILED["CFLAGS_armv7_unknown_linux_gnueabihf"]


def tizen(work):
    """The specification is one, and lists what `make install` lays out: rpm says what is listed and not there,
    and what is there and not listed. The programs are those of the packages."""
    top = work.room("rpmbuild")
    (top / "SOURCES").mkdir()
    shutil.copy(one(work.folder / "archive", "*.tar.gz"), top / "SOURCES")
    shutil.copy(SOURCE / "cross/tizen/bellwire.manifest", top / "SOURCES")
    # What is compiled is not of interest here, and would take minutes.
    cargo = top / "bin/cargo"
    cargo.parent.mkdir()
    cargo.write_text(f'#!/bin/sh\nmkdir -p target/device && cp "{work.programs}/bellwired" target/device\n')
    cargo.chmod(0o755)
    path = f"{cargo.parent}:{ENVIRONMENT['PATH']}"
    # The macro that Tizen's rpm has for the manifest.
    run("rpmbuild", "-bb", "--nodeps", "--define", f"_topdir {top}", "--define", "debug_package %{nil}",
        "--define", "manifest() %{nil}", SOURCE / "cross/tizen/bellwire.spec", env={**ENVIRONMENT, "PATH": path})
    specification = (SOURCE / "cross/tizen/bellwire.spec").read_text()
    flags = specification.partition('export LIBSQLITE3_FLAGS="')[2].partition('"')[0].split()
    expect(flags == SQLITE and TIMES in specification, f"{flags}")
    package = one(top / "RPMS", f"*/bellwired-{VERSION}-*.rpm")
    place = top / "unpacked"
    unpack(package, place)
    policy = (place / "usr/share/dbus-1/system.d/org.bellwire.Push.conf").read_text()
    expect('user="service_fw"' in policy and 'user="bellwire"' not in policy, "the bus knows another user")
    tmpfiles = (place / "usr/lib/tmpfiles.d/bellwired.conf").read_text()
    expect(" service_fw service_fw" in tmpfiles, tmpfiles)
    shutil.rmtree(top)


def yocto(work):
    """BitBake's parser reads the recipe, a linter has nothing against it, and what it installs is listed."""
    layer = SOURCE / "cross/yocto/meta-bellwire"
    recipe = one(layer / "recipes-bellwire/bellwire", f"bellwire_{VERSION}.bb")
    python = Path(run(HERE.parent / "foreign/setup.sh", TARGET / "tmp/packages", HERE / "requirements.txt").strip())
    said = run(python.parent / "oelint-adv", "--quiet", "--release", "wrynose", "--exit-zero", "--messageformat",
               "{severity}:{id}:{msg}", "--suppress", "oelint.vars.homepageping", recipe, layer / "conf/layer.conf")
    complaints = [line for line in said.splitlines() if line.startswith(("error:", "warning:"))]
    expect(not complaints, "\n".join(complaints))
    classes = work.room("classes")
    (classes / "classes-recipe").mkdir()
    for name in ("base", "cargo", "pkgconfig", "systemd", "useradd"):
        (classes / f"classes-recipe/{name}.bbclass").touch()
    image, programs = work.room("image"), work.room("yocto-build")
    (programs / "target/machine").mkdir(parents=True)
    shutil.copy(work.programs / "bellwired", programs / "target/machine")
    folders = {"prefix": "/usr", "sysconfdir": "/etc", "datadir": "/usr/share", "localstatedir": "/var",
               "base_sbindir": "/sbin", "D": image, "B": programs, "S": SOURCE, "PN": "bellwire", "PV": VERSION,
               "BP": f"bellwire-{VERSION}", "CARGO_TARGET_SUBDIR": "machine", "CARGO_BUILD_FLAGS": "--frozen",
               "TARGET_CFLAGS": "-O2", "OVERRIDES": "arm"}
    read = json.loads(run(python, HERE / "recipe.py", recipe, classes, *(f"{k}={v}" for k, v in folders.items())))
    expect(read["SRC_URI"] == f"file://bellwire-{VERSION}.tar.gz", read["SRC_URI"])
    for name in ("MIT", "APACHE"):
        known = hashlib.md5((SOURCE / f"LICENSE-{name}").read_bytes()).hexdigest()
        expect(f"file://LICENSE-{name};md5={known}" in read["LIC_FILES_CHKSUM"], f"another LICENSE-{name}")
    run("sh", "-euc", f'oe_runmake() {{ make "$@"; }}\n{read["do_install"]}')
    expect(read["CARGO_PROFILE_RELEASE_STRIP"] == "none", "BitBake has nothing to strip")
    expect(read["LIBSQLITE3_FLAGS"].split() == SQLITE, read["LIBSQLITE3_FLAGS"])
    expect(read["TARGET_CFLAGS"] == f"-O2 {TIMES}", read["TARGET_CFLAGS"])
    presets = [file for file in files(image) if file.endswith(".preset")]
    # Another one for the system would be stronger than SYSTEMD_AUTO_ENABLE.
    expect(presets == ["/usr/lib/systemd/user-preset/50-bellwired.preset"], f"presets: {presets}")
    # What bitbake.conf lists for a package and its documentation anyway.
    usual = ["/usr/bin", "/etc", "/usr/share/bellwire", "/usr/share/doc", "/usr/share/man"]
    expect_listed(image, [*usual, *read["FILES:bellwire"].split()])
    shutil.rmtree(image)


def expect_listed(folder, patterns):
    left = [file for file in files(folder) if not any(file.startswith(f"{pattern}/") for pattern in patterns)]
    expect(files(folder) and not left, f"installed and not listed: {left}")


def buildroot(work):
    """make reads the package, and what it does to install is what `make install` does. Buildroot's own part of
    it is stood in for by two lines. What is installed starts with busybox, and is kept running."""
    tree, target, room = SOURCE / "cross/buildroot", work.room("br-target"), work.room("br-build")
    for name in run("git", "-C", SOURCE, "ls-files", "-z", "Makefile", "packaging", "examples", "man", "dbus",
                    "systemd", "LICENSE-*", "README.md", "CHANGELOG.md").split("\0"):
        if name:
            (room / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, room / name)
    (room / "target/triple/release").mkdir(parents=True)
    shutil.copy(work.programs / "bellwired", room / "target/triple/release")
    top = work.folder / "buildroot.mk"
    top.write_text('qstrip = $(strip $(subst ",,$(1)))\n'
                   "cargo-package = install: ; $$(BELLWIRE_INSTALL_TARGET_CMDS)\n"
                   "all: install ; $(BELLWIRE_INSTALL_INIT_SYSV)\n"
                   "include $(BR2_EXTERNAL_BELLWIRE_PATH)/external.mk\n"
                   "options: ; @echo '$(BELLWIRE_CARGO_BUILD_OPTS)|$(BELLWIRE_SITE)|$(BELLWIRE_SOURCE)|"
                   "$(BELLWIRE_USERS)'\n"
                   "environment: ; @env -i $(BELLWIRE_CARGO_ENV) PATH=$(PATH) env\n")
    values = {"BR2_EXTERNAL_BELLWIRE_PATH": tree, "TARGET_DIR": target, "RUSTC_TARGET_NAME": "triple",
              "BR2_PACKAGE_BELLWIRE_FEATURES": '"agent,ws"', "BR2_PACKAGE_BELLWIRE_SOURCE": '"/src"',
              "INSTALL": "install", "BELLWIRE_PKGDIR": tree / "package/bellwire"}
    make = ["make", "-C", room, "-f", top, *(f"{name}={value}" for name, value in values.items())]
    said = run(*make, "options")
    # What it takes is what cross/source.sh makes.
    archive = f"|/src|bellwire-{VERSION}.tar.gz|"
    expect(f"--features agent,ws --bin bellwired{archive}" in said and "bellwire -1 bellwire -1" in said, said)
    said = run(*make, "environment", "TARGET_CFLAGS=-O2")
    environment = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    profile = [environment[f"CARGO_PROFILE_RELEASE_{name}"] for name in ("OPT_LEVEL", "LTO", "CODEGEN_UNITS")]
    expect(profile == ["z", "fat", "1"], f"{profile}")
    expect(environment["LIBSQLITE3_FLAGS"].split() == SQLITE, environment["LIBSQLITE3_FLAGS"])
    expect(environment["CFLAGS"] == f"-O2 {TIMES}", environment["CFLAGS"])
    expect("CFLAGS=" not in run(*make, "environment", "BR2_ARCH_IS_64=y"), "64 bits need no flags")
    run(*make, "--dry-run", "all")
    run(*make, "all")
    expect_listed(target, ["/usr", "/etc"])
    expect((target / "usr/bin/bellwired").exists() and (target / "etc/init.d/S95bellwired").exists(), "no program")
    root = Root(work.folder / "init")
    shutil.copytree(target, root.folder, dirs_exist_ok=True)
    said = run("unshare", "--mount", "--pid", "--fork", "--kill-child", HERE / "init.sh", root.folder)
    print("".join(f"   {line}\n" for line in said.splitlines() if line.startswith("ok - ")), end="")
    shutil.rmtree(root.folder)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
