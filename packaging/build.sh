#!/bin/sh
# Builds programs for use: the same source gives the same bytes, wherever it is built, and they name no folder
# of this machine.
#
#     packaging/build.sh [bellwired] [bellwire-server] [bellwire]
#
# They are put into release of the target folder. bellwired is what devices have: as small as it gets, in memory too,
# and without what only the others need.
#
# A panic tells its place in the source; that begins with /usr/src/bellwire, or with /usr/src/crates for a
# crate.
set -eu
cd "$(dirname "$0")/.."

root=$(pwd -P)
home=${CARGO_HOME:-$HOME/.cargo}
target=${CARGO_TARGET_DIR:-$root/target}
# The folder of the crates has to be there for its name to be known.
cargo fetch --locked --quiet

# From one folder to what it is called, a pair a line; of two that fit, rustc and gcc take the last: the crates are
# at the end, as they may be below the source. Those of cross/source.sh are in VENDOR.
names() {
    echo "$home=/usr/src/cargo"
    echo "$root=/usr/src/bellwire"
    echo "$target=/usr/src/bellwire/target"
    for crates in "$home"/registry/src/* "$root/VENDOR"; do echo "$crates=/usr/src/crates"; done
}

# Separated by what may not be in a flag, as a folder's name may have spaces.
separator=$(printf '\037')
flags=${CARGO_ENCODED_RUSTFLAGS-$(printf %s "${RUSTFLAGS-}" | tr -s ' ' "$separator")}
add_flag() { flags=${flags:+$flags$separator}$1; }
while IFS= read -r name; do add_flag "--remap-path-prefix=$name"; done <<NAMES
$(names)
NAMES
# SQLite and the cryptography are C. What compiles them reads the flags as a shell does, if it is told to.
quoted() { sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/" | tr '\n' ' '; }
CFLAGS="${CFLAGS-} $(names | sed 's/^/-ffile-prefix-map=/' | quoted)"
export CFLAGS CC_SHELL_ESCAPED_FLAGS=1

# glibc has it from 2.36 on, and binutils before that.
knows_short_relocations() {
    version=$(getconf GNU_LIBC_VERSION 2>/dev/null) || return 1
    [ "$(printf '%s\n' 'glibc 2.36' "$version" | sort -V | head -n 1)" = 'glibc 2.36' ]
}

build() { CARGO_ENCODED_RUSTFLAGS=$flags cargo build --locked "$@"; }

device='' others=''
for program; do
    case $program in
        bellwired) device=1 ;;
        *) others="$others --bin $program" ;;
    esac
done
# shellcheck disable=SC2086  # a list of words
[ -z "$others" ] || build --release $others
if [ -n "$device" ]; then
    # A panic ends the program: nothing is ever unwound.
    add_flag -Cforce-unwind-tables=no
    # Half of what is read at a start is where addresses have to be set, unless the C library knows the short form.
    if knows_short_relocations; then add_flag -Clink-arg=-Wl,-z,pack-relative-relocs; fi
    # What is not used of SQLite stays out.
    LIBSQLITE3_FLAGS=$(sed -n 's/^ *\(-[DU]SQLITE[^"]*\).*/\1/p' cross/config.toml | tr '\n' ' ')
    export LIBSQLITE3_FLAGS
    build --profile device --no-default-features --features agent,ws,mqtt,unifiedpush --bin bellwired
    mkdir -p "$target/release"
    # It may be running, and what cargo has put there is cargo's.
    cp --remove-destination "$target/device/bellwired" "$target/release/bellwired"
fi
