#!/bin/sh
# Builds the programs for use: the same source gives the same bytes, wherever it is built, and they name no
# folder of this machine.
#
#     packaging/build.sh [ARGUMENT OF CARGO BUILD]...
#
# --bins, or --bin NAME, says which.
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
while IFS= read -r name; do flags=${flags:+$flags$separator}--remap-path-prefix=$name; done <<NAMES
$(names)
NAMES
export CARGO_ENCODED_RUSTFLAGS="$flags"
# SQLite and the cryptography are C. What compiles them reads the flags as a shell does, if it is told to.
quoted() { sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/" | tr '\n' ' '; }
CFLAGS="${CFLAGS-} $(names | sed 's/^/-ffile-prefix-map=/' | quoted)"
export CFLAGS CC_SHELL_ESCAPED_FLAGS=1
exec cargo build --locked --release "$@"
