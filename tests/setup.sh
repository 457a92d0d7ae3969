#!/bin/sh
# Installs what is missing on this machine, says so, and runs a command with a fit Rust toolchain:
#
#     tests/setup.sh build|demo|test|systemd|arm|package|judge|check|all [COMMAND [ARGUMENT...]]
#     tests/setup.sh packages PACKAGE...
#
# The second form only installs what is missing of these packages.
#
# Packages come from Debian; as Rust serves the toolchain that is there, if it is new enough, else
# Debian's rustc-web and cargo-web. What makes packages is built by cargo and put into the target folder.
# Nothing is removed and nothing that is there is replaced.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 69; }

# Whether version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# Whether the folder $1 has a cargo and a rustc that are new enough. A shim without a toolchain
# prints no version.
fit() {
    for program in cargo rustc; do
        version=$("$1/$program" --version 2>/dev/null | cut -d ' ' -f 2) || return 1
        [ -n "$version" ] && at_least "$version" "$minimum" || return 1
    done
}

# Prints the folder of the first fit toolchain.
find_rust() {
    first=$(command -v cargo) || first=/usr/bin/cargo
    for folder in "$(dirname "$first")" "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/local/bin /usr/bin; do
        if fit "$folder"; then echo "$folder"; return; fi
    done
}

# Puts the folder $1 first in PATH. Cargo looks for its subcommands in its own home before PATH,
# where an older toolchain may have left some, unless PATH names that home too: last will do.
use_rust() {
    [ "$(command -v cargo)" = "$1/cargo" ] || PATH="$1:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    export PATH
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_packages() {
    if [ "$(id -u)" = 0 ]; then as_root=; else as_root=sudo; fi
    [ -z "$as_root" ] || command -v sudo >/dev/null || fail "not root and no sudo; as root: apt-get install $*"
    say "installing Debian packages: $*"
    $as_root apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --no-remove \
        -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install "$@" >/dev/null ||
        fail "apt-get could not install: $*"
}

# Installs what is missing of these packages.
need_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system; needed is what Debian has in: $*"
        return
    fi
    [ -n "$(missing "$@")" ] || return 0
    # Others of this source's may be at it, as those of `make -j`; apt waits for nobody's lists.
    exec 9< "$root"
    flock 9
    missing=$(missing "$@")
    # shellcheck disable=SC2086  # a list of words
    [ -z "$missing" ] || install_packages $missing 9<&-
    exec 9<&-
}

# Prints what is not installed of these packages.
missing() {
    for package in "$@"; do installed "$package" || echo "$package"; done
}

# Builds the crates "$@", NAME@VERSION, for their programs, where they are not there yet.
need_tools() {
    tools=${CARGO_TARGET_DIR:-$root/target}/tools
    for tool in "$@"; do
        ! grep -q "^\"${tool%@*} ${tool#*@} " "$tools/.crates.toml" 2>/dev/null || continue
        say "building $tool: minutes"
        cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" "$tool" ||
            fail "cargo could not install $tool"
        rm -rf "$tools/build"
    done
}

for_build="gcc libc6-dev ca-certificates"
for_demo="$for_build dbus"
for_test="$for_demo curl openssl python3-venv groff-base
    dunst xvfb xdotool libglib2.0-bin bubblewrap faketime tinyproxy-bin systemd jq libsystemd-dev pkg-config
    mosquitto mosquitto-clients python3-dbusmock iproute2 nftables"
# Debian's npm is hundreds of packages: what is there serves.
command -v npm >/dev/null && command -v node >/dev/null || for_test="$for_test nodejs npm"
for_systemd="$for_build python3 systemd-container mmdebstrap"
for_arm="dbus openssl python3 python3-jeepney qemu-user-static
    libc6-arm64-cross libc6-armhf-cross libgcc-s1-arm64-cross libgcc-s1-armhf-cross"
for_package="$for_build dpkg-dev rpm"
for_judge="$for_package $for_systemd python3-venv lintian rpmlint systemd busybox"
crates=
case ${1-} in
    build) packages=$for_build lints= ;;
    demo) packages=$for_demo lints= ;;
    test) packages=$for_test lints= ;;
    systemd) packages=$for_systemd lints= ;;
    arm) packages=$for_arm lints= ;;
    packages) shift; need_packages "$@"; exit ;;
    package) packages=$for_package crates="cargo-deb@3.8.0" lints= ;;
    judge) packages=$for_judge lints= ;;
    check) packages=$for_build lints=1 ;;
    all) packages="$for_test $for_systemd" lints=1 ;;
    *)
        echo "usage: tests/setup.sh build|demo|test|systemd|arm|package|judge|check|all [COMMAND [ARGUMENT...]]" >&2
        exit 64
        ;;
esac
shift

rust=$(find_rust)
if [ -z "$rust" ]; then
    say "no Rust toolchain of version $minimum or later here"
    packages="$packages rustc-web cargo-web"
fi
if [ -n "$lints" ] && { [ -z "$rust" ] || { [ "$rust" = /usr/bin ] && installed rustc-web; }; }; then
    packages="$packages rust-web-clippy rustfmt-web"
fi

# shellcheck disable=SC2086  # a list of words
need_packages $packages

[ -n "$rust" ] || rust=$(find_rust)
[ -n "$rust" ] || fail "Rust $minimum or later is needed, from https://rustup.rs or Debian 12's security updates"
use_rust "$rust"
if [ -n "$lints" ] && ! { cargo clippy --version && cargo fmt --version; } >/dev/null 2>&1; then
    say "adding clippy and rustfmt to the toolchain"
    rustup component add clippy rustfmt || fail "clippy and rustfmt are missing from the toolchain in $rust"
fi
# shellcheck disable=SC2086  # a list of words
[ -z "$crates" ] || need_tools $crates
[ $# = 0 ] || exec "$@"
