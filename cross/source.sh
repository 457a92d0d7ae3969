#!/bin/sh
# Packs the source together with its crates, for builds that may fetch nothing: those of Tizen, Yocto and
# Buildroot.
#
#     cross/source.sh FOLDER
#
# It makes bellwire-VERSION.tar.gz in FOLDER of the last commit, always the same bytes, and prints its SHA-256.
# The crates are in VENDOR, in folders that are called as cargo calls its own, and .cargo/config.toml says so: no
# option is needed to build from it. Exit status: 69 without git or cargo, else that of what failed.
set -eu
umask 022

[ $# = 1 ] || { echo "usage: cross/source.sh FOLDER" >&2; exit 64; }
mkdir -p "$1"
to=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
cannot() { echo "cross/source.sh: $*" >&2; exit 69; }
for tool in git cargo; do command -v "$tool" >/dev/null || cannot "$tool is missing"; done
# A folder without git may be in one that has it.
top=$(git rev-parse --show-toplevel 2>/dev/null) && [ "$top" = "$(pwd -P)" ] ||
    cannot "it packs a commit, and $(pwd -P) is no checkout of git that this user may read"
commit=$(git rev-parse HEAD)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=bellwire-$version

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git archive --prefix="$name/" "$commit" | tar -C "$work" -x
# Before cargo is told that they are there.
(cd "$work/$name" && cargo vendor --quiet --locked --versioned-dirs VENDOR >/dev/null)
mkdir "$work/$name/.cargo"
cat > "$work/$name/.cargo/config.toml" <<'CONFIG'
[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "VENDOR"
CONFIG
tar -C "$work" --sort=name --mtime="@$(git log -1 --format=%ct "$commit")" --owner=0 --group=0 --numeric-owner --mode=a+rX,u+w,go-w \
    -c "$name" | gzip -9n > "$to/$name.tar.gz"
cd "$to" && sha256sum "$name.tar.gz"
