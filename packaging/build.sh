#!/bin/sh
# Builds the programs for use: the same source gives the same bytes, wherever it is built, and they name no
# folder of this machine.
#
#     packaging/build.sh [ARGUMENT OF CARGO BUILD]...
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

# From one folder to what it is called, a pair a line; of two that fit, rustc and gcc take the last.
names() {
    echo "$home=/usr/src/cargo"
    for crates in "$home"/registry/src/*; do echo "$crates=/usr/src/crates"; done
    echo "$root=/usr/src/bellwire"
    echo "$target=/usr/src/bellwire/target"
}

# Separated by what may not be in a flag, as a folder's name may have spaces.
separator=$(printf '\037')
flags=${CARGO_ENCODED_RUSTFLAGS-$(printf %s "${RUSTFLAGS-}" | tr -s ' ' "$separator")}
while read -r name; do flags=${flags:+$flags$separator}--remap-path-prefix=$name; done <<NAMES
$(names)
NAMES
export CARGO_ENCODED_RUSTFLAGS="$flags"
# SQLite and the cryptography are C.
CFLAGS="${CFLAGS-} $(names | sed 's/^/-ffile-prefix-map=/' | tr '\n' ' ')"
export CFLAGS
exec cargo build --locked --bins --release "$@"
