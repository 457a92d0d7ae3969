#!/bin/bash
# Builds Bellwire for a device of another kind, on Debian 12 or in the image debian:bookworm:
#
#     cross/build.sh aarch64|armv7|x86_64 [--system-sqlite | --musl] [--quick] [--features LIST] [--setup | --weigh FILE]
#
# LIST is agent,ws if it is not named. With `agent` in it bellwired is built, with `server`
# bellwire-server, with both also bellwire. They have SQLite in them, and are put into
# target/cross/ARCHITECTURE. With --system-sqlite they use the system's libsqlite3: they are linked with
# that of the folder SQLITE3_LIB_DIR, else with one that is put into target/cross/sqlite-ARCHITECTURE. With
# --musl they need no library at all, not even the C library. What either makes is put into a folder of its
# own, target/cross/ARCHITECTURE-system-sqlite or target/cross/ARCHITECTURE-musl. --quick compiles for tests: in a
# fraction of the time, large and slow, into target/cross/ARCHITECTURE-quick. --setup only installs and makes
# what a build needs; --weigh only holds a bellwired that somebody else has built to the budget.
#
# It fetches nothing but Debian's packages and crates, and says which packages it installs. The compiler is
# Debian's rustc-web, with a standard library that is compiled here for small programs, once for each
# version. No architecture is added to dpkg: a mirror that lacks it would fail every update of this machine.
#
# A bellwired that is larger than cross/budget allows is a failure, and so is a program that names a folder
# of this machine: the same source makes the same bytes in any folder. Exit status: 0 built and small
# enough, 1 too large or not so, 64 wrong usage, 69 something cannot be had here, else that of what failed.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
# Debian's toolchain; that of rustup stays what it is.
rust=/usr/bin

say() { echo "cross: $*" >&2; }
fail() { local status=$1; shift; say "$*"; exit "$status"; }
usage() {
    fail 64 "usage: cross/build.sh aarch64|armv7|x86_64 [--system-sqlite | --musl]" \
        "[--quick] [--features LIST] [--setup | --weigh FILE]"
}

# Sets what is called differently for each architecture, by GNU, by Debian and by Rust.
name_target() {
    case $architecture in
        aarch64) gnu=aarch64-linux-gnu debian=arm64 ;;
        armv7) gnu=arm-linux-gnueabihf debian=armhf ;;
        x86_64) gnu=x86_64-linux-gnu debian=amd64 ;;
        *) usage ;;
    esac
    libc=$gnu place=$architecture
    if [ -n "$system_sqlite" ]; then place+=-system-sqlite; fi
    if [ -n "$musl" ]; then libc=${gnu/gnu/musl} place+=-musl; fi
    if [ -n "$quick" ]; then place+=-quick profile=quick; fi
    target=${libc/-linux/-unknown-linux}
    target=${target/#arm-/armv7-}
}

parse() {
    [ $# -gt 0 ] || usage
    architecture=$1 features=agent,ws system_sqlite="" musl="" quick="" profile=device setup_only="" weigh_only=""
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --features) [ $# -gt 1 ] || usage; features=$2; shift ;;
            --features=*) features=${1#*=} ;;
            --system-sqlite) system_sqlite=1 ;;
            --musl) musl=1 ;;
            --quick) quick=1 ;;
            --setup) setup_only=1 ;;
            --weigh) [ $# -gt 1 ] || usage; weigh_only=$2; shift ;;
            *) usage ;;
        esac
        shift
    done
    name_target
    has agent || has server || fail 64 "the features $features have no program: agent or server is needed"
    [ -z "$musl" ] || [ -z "$system_sqlite" ] || fail 64 "a program for --musl has no library of the system"
}

has() { case ",$features," in *",$1,"*) ;; *) return 1 ;; esac; }

programs() {
    if has agent; then echo bellwired; fi
    if has server; then echo bellwire-server; fi
    if has agent && has server; then echo bellwire; fi
}

# The most that bellwired may have, in bytes; nothing if there is no budget for it: with the server's
# features or --quick it is not what a device gets, and with --musl it has the C library in it.
budget() {
    has agent && ! has server && [ -z "$musl$quick" ] || return 0
    local base more=0
    base=$(sed -n "s/^$architecture //p" "$root/cross/budget")
    if [ -z "$system_sqlite" ]; then more=$(sed -n 's/^bundled-sqlite //p' "$root/cross/budget"); fi
    [ -z "$base" ] || echo $((base + more))
}

# Says the size of the program $1, and fails if it is over $2 bytes.
weigh() {
    local size
    size=$(stat -c %s "$1")
    [ -n "$2" ] || { say "$1: $size bytes"; return; }
    [ "$size" -le "$2" ] ||
        fail 1 "$1 has $size bytes, $((size - $2)) more than the $2 that cross/budget allows for $place with $features"
    say "$1: $size bytes, $(($2 - size)) below its budget of $2"
}

# Fails if the program $1 names a folder in which it was built.
look_for_paths() {
    local folder
    for folder in "$root/src/" "$out/" "$CARGO_HOME/"; do
        ! grep -qaF "$folder" "$1" || fail 1 "$1 names $folder, where it was built"
    done
}

install_packages() {
    local packages="ca-certificates gcc libc6-dev rustc-web cargo-web rust-web-src"
    [ "$architecture" = x86_64 ] || packages+=" gcc-$gnu libc6-dev-$debian-cross"
    # shellcheck disable=SC2086  # a list of words
    "$root/tests/setup.sh" packages $packages
}

# The standard library for the target, compiled by the compiler that will use it and as the programs are, in
# $sysroot. It leaves out what a stripped program that aborts has no use for: unwinding and backtraces.
make_std() {
    local build=$cache/std-$target libraries=$sysroot/lib/rustlib/$target/lib
    say "compiling Rust's standard library for $target: minutes, once for each version of rustc"
    rm -rf "$build" "$cache/rust-"*"-$target"
    mkdir -p "$build/src" "$libraries"
    : > "$build/src/lib.rs"
    cat > "$build/Cargo.toml" <<'MANIFEST'
[package]
name = "nothing"
version = "0.0.0"
edition = "2021"

[profile.release]
opt-level = "z"
codegen-units = 1
panic = "abort"

[workspace]
MANIFEST
    # For lto: the library is to keep what it was compiled from.
    cat > "$build/rustc" <<'WRAPPER'
#!/bin/sh
rustc=$1
shift
case " $* " in *" --target "*) set -- "$@" -Cembed-bitcode=yes ;; esac
exec "$rustc" "$@"
WRAPPER
    chmod +x "$build/rustc"
    # Debian's compiler is a stable one, and building its own library is what the variable is for.
    export RUSTC_BOOTSTRAP=1 RUSTC_WRAPPER=$build/rustc
    cargo build --quiet --release --offline --manifest-path "$build/Cargo.toml" --target-dir "$build/target" \
        -Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size \
        --config 'source.crates-io.replace-with="debian"' \
        --config 'source.debian.directory="/usr/lib/rustlib/src/rust/library/vendor"'
    unset RUSTC_BOOTSTRAP RUSTC_WRAPPER
    cp "$build/target/$target/release/deps/"*.rlib "$libraries"
    rm -rf "$libraries"/libnothing-* "$build"
    # The last step: a folder without it is made anew.
    touch "$sysroot/complete"
}

# Debian's cargo for the target, without flags that the user has for this machine.
cargo() {
    local flags
    flags=$(printf ', "%s"' "${rust_flags[@]}")
    env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u RUSTUP_TOOLCHAIN RUSTC=$rust/rustc "$rust/cargo" "$@" \
        --config "$root/cross/config.toml" --config "target.$target.rustflags = [${flags#, }]" --target "$target"
}

prepare_rust() {
    # A panic ends the program: nothing is ever unwound.
    rust_flags=(-Cforce-unwind-tables=no --remap-path-prefix=/usr/lib/rustlib/src/rust=/rust)
    local how
    how=$({ declare -f make_std prepare_rust; sed '/^#/d' "$root/cross/config.toml"; } | cksum | cut -d ' ' -f 1)
    sysroot=$cache/rust-$($rust/rustc --version | cut -d ' ' -f 2)-$how-$target
    [ -e "$sysroot/complete" ] || make_std
    rust_flags+=(--sysroot "$sysroot")
}

# Where it is built does not matter to a program: neither the name of a folder gets into it, by what Rust and
# C say of where something failed, nor does one change how Rust calls what it compiles.
hide_paths() {
    # Crates have a place of each registry they come from, and it is there after this.
    cargo fetch --quiet --locked
    local hidden=("$root=/bellwire" "$out=/build" "$cache=/cache") registry
    for registry in "$CARGO_HOME/registry/src/"*; do hidden+=("$registry=/crates"); done
    rust_flags+=("${hidden[@]/#/--remap-path-prefix=}")
    # What compiles C reads its flags as a shell does, if it is told to.
    export "CFLAGS_${target//-/_}=$(c_flags)$(quoted "${hidden[@]/#/-ffile-prefix-map=}")" CC_SHELL_ESCAPED_FLAGS=1
}

# The words $1... as a shell takes each for one.
quoted() { local word; for word; do printf " '%s'" "${word//\'/\'\\\'\'}"; done; }

# How C is compiled for the target, beside what its compiler does by itself.
c_flags() { sed -n "s/^CFLAGS_${target//-/_} = \"\(.*\)\"/\1/p" "$root/cross/config.toml"; }

# Downloads Debian's package $1 of the target's architecture and unpacks it into $foreign, by lists of
# its own.
fetch_package() {
    [ ! -e "$foreign/$1.complete" ] || return 0
    local apt=$cache/apt-$debian
    say "fetching Debian's $1:$debian"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/packages" "$foreign"
    cat > "$apt/apt.conf" <<CONFIG
APT::Architectures { "amd64"; "$debian"; };
APT::Sandbox::User "root";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt";
Acquire::Languages "none";
Acquire::Retries "3";
CONFIG
    # A source that lacks this architecture fails here; what the others have is enough.
    APT_CONFIG=$apt/apt.conf apt-get -qq update 2>"$apt/log" || true
    (cd "$apt/packages" && APT_CONFIG=$apt/apt.conf apt-get -qq download "$1:$debian" 2>>"$apt/log") ||
        { cat "$apt/log" >&2; fail 69 "Debian's $1:$debian cannot be fetched"; }
    dpkg -x "$apt/packages/$1"_*"_$debian.deb" "$foreign"
    rm -rf "$apt"
    touch "$foreign/$1.complete"
}

# A compiler and linker for static programs with musl: Debian's gcc, told by musl's own specs where its
# headers and libraries are, and LLVM's library that unwinds stacks, which Rust asks for.
prepare_musl() {
    local gcc=$cache/$libc-gcc
    foreign=$cache/debian-$debian
    fetch_package musl-dev
    fetch_package libunwind-14-dev
    # A space would end a word there.
    local escaped=${foreign// /\\\\ }
    sed "s| /usr/| $escaped/usr/|g; s|-L/usr/|-L$escaped/usr/|g" "$foreign/usr/lib/$libc/musl-gcc.specs" > "$gcc.specs"
    printf '#!/bin/sh\nexec %s-gcc "$@" -specs "%s"\n' "$gnu" "$gcc.specs" > "$gcc"
    chmod +x "$gcc"
    export "CC_${target//-/_}=$gcc"
    # That library was compiled for glibc. What musl lacks of it only prints why unwinding has failed, before
    # it gives up.
    rust_flags+=(-Clinker="$gcc" -Clink-self-contained=no -Crelocation-model=static
        -Lnative="$foreign/usr/lib/$libc" -Lnative="$foreign/usr/lib/llvm-14/lib"
        "-Clink-arg=-Wl,--defsym=__fprintf_chk=abort")
}

# Where libsqlite3 of the target is. Where nobody says it, one is compiled of the source that rusqlite has:
# Debian 12 has an older one than the programs need.
prepare_sqlite() {
    unset LIBSQLITE3_SYS_USE_PKG_CONFIG
    [ -n "$system_sqlite" ] || return 0
    # So rusqlite is told to link a library, although it has the source of one.
    export LIBSQLITE3_SYS_USE_PKG_CONFIG=1
    [ -z "${SQLITE3_LIB_DIR-}" ] || return 0
    export SQLITE3_LIB_DIR=$out/cross/sqlite-$architecture
    local manifest
    manifest=$("$rust/cargo" metadata --locked --format-version 1 --filter-platform "$target" |
        grep -o '"manifest_path":"[^"]*/libsqlite3-sys-[^"]*"' | cut -d '"' -f 4)
    local source=${manifest%/*}/sqlite3/sqlite3.c library=$SQLITE3_LIB_DIR/libsqlite3.so.0
    [ "$(cat "$SQLITE3_LIB_DIR/source" 2>/dev/null)" != "$source" ] || return 0
    say "compiling SQLite for $architecture as a library of the system"
    mkdir -p "$SQLITE3_LIB_DIR"
    # shellcheck disable=SC2046  # a list of words
    "$gnu-gcc" -shared -fPIC -Os $(c_flags) -Wl,-soname,libsqlite3.so.0 -o "$library" "$source" -lm
    ln -sf libsqlite3.so.0 "$SQLITE3_LIB_DIR/libsqlite3.so"
    # The last step: without it, or for another version, it is made anew.
    echo "$source" > "$SQLITE3_LIB_DIR/source"
}

# Makes the folder $1 if it is missing, and prints its whole name.
folder() { mkdir -p "$1" && (cd "$1" && pwd -P); }

build() {
    local program bins=()
    for program in $(programs); do bins+=(--bin "$program"); done
    cargo build --locked --profile "$profile" --target-dir "$out" --no-default-features --features "$features" "${bins[@]}"
}

main() {
    parse "$@"
    if [ -n "$weigh_only" ]; then weigh "$weigh_only" "$(budget)"; return; fi
    cd "$root"
    [ "$(uname -m)" = x86_64 ] || fail 69 "Debian's cross compilers run on x86-64, and this is $(uname -m)"
    out=$(folder "${CARGO_TARGET_DIR:-$root/target}")
    cache=$(folder "${BELLWIRE_CROSS_CACHE:-$out/cross/cache}")
    CARGO_HOME=$(folder "${CARGO_HOME:-$HOME/.cargo}")
    export CARGO_HOME
    # Rust takes musl for one from before it had times of 64 bits on machines of 32, unless it is told.
    if [ -n "$musl" ]; then export RUST_LIBC_UNSTABLE_MUSL_V1_2_3=1; fi
    install_packages
    prepare_rust
    prepare_sqlite
    if [ -n "$musl" ]; then prepare_musl; fi
    [ -z "$setup_only" ] || return 0
    hide_paths
    build
    local program built=$out/cross/$place
    mkdir -p "$built"
    for program in $(programs); do
        cp --remove-destination "$out/$target/$profile/$program" "$built/$program"
        look_for_paths "$built/$program"
        case $program in
            bellwired) weigh "$built/$program" "$(budget)" ;;
            *) weigh "$built/$program" "" ;;
        esac
    done
}

# In one line, so that a change of this file does not matter to who runs it.
main "$@"; exit
