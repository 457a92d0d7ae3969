#!/bin/sh
# Makes packages of programs that are built; each has what packaging/install.sh puts in its place.
#
#     packaging/make.sh deb|rpm PACKAGE... [-- ARGUMENT OF CARGO DEB OR CARGO GENERATE-RPM...]
#
# They are put into deb or rpm of the target folder. PROGRAMS and WRITERS are as
# for install.sh; MACHINE is what the programs are for, as cross/build.sh calls it, this machine if absent.
set -eu
umask 022
cd "$(dirname "$0")/.."

out=${CARGO_TARGET_DIR:-target}
PATH=$out/tools/bin:$PATH
export PATH
# No time but that of the source is in a package: of the last commit, or in an archive of the file that every
# release changes.
if [ -z "${SOURCE_DATE_EPOCH-}" ] && [ -e .git ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) || {
        echo "packaging/make.sh: git does not say when the source was changed: set SOURCE_DATE_EPOCH" >&2
        exit 69
    }
elif [ -z "${SOURCE_DATE_EPOCH-}" ]; then
    SOURCE_DATE_EPOCH=$(stat -c %Y CHANGELOG.md)
    echo "packaging/make.sh: without git the packages have the time of CHANGELOG.md, $SOURCE_DATE_EPOCH" >&2
fi
export SOURCE_DATE_EPOCH

# What Rust calls the machine, and what RPM calls it if it is something else.
rpm_arch=
case ${MACHINE-} in
    '') target= ;;
    aarch64) target=aarch64-unknown-linux-gnu ;;
    armv7) target=armv7-unknown-linux-gnueabihf rpm_arch=armv7hl ;;
    x86_64) target=x86_64-unknown-linux-gnu ;;
    *) echo "packaging/make.sh: cross/build.sh knows no machine $MACHINE" >&2; exit 64 ;;
esac

# Puts the files of the package $1 in the style $2 where both tools take what they call target/release.
stage() {
    stage=$out/${target:+$target/}release/stage/$1
    rm -rf "$stage"
    DESTDIR=$stage PREFIX=/usr SYSCONFDIR=/etc STYLE=$2 packaging/install.sh "$1"
    find "$stage/usr/share/man" -type f -exec gzip -9n {} +
}

make_deb() {
    package=$1
    shift
    stage "$package" debian
    # It would warn of units that are in the stage already, and of scripts, which need no library.
    cargo-deb --quiet --locked --no-build ${target:+--target "$target"} --variant "$package" --output "$out/deb/" "$@"
}

# The files of the stage as cargo generate-rpm wants to have them told: its patterns know one mode for all.
rpm_assets() {
    echo 'assets = ['
    find "$stage" -type f | LC_ALL=C sort | while read -r file; do
        place=${file#"$stage"} kind=
        case $place in
            /etc/*) kind=', config = "noreplace"' ;;
            /usr/share/doc/* | /usr/share/man/*) kind=', doc = true' ;;
        esac
        echo "    { source = \"target/release/stage/$package$place\", dest = \"$place\"," \
            "mode = \"$(stat -c %a "$file")\"$kind },"
    done
    echo ']'
}

make_rpm() {
    package=$1
    shift
    stage "$package" ''
    rpm_assets > "$stage.toml"
    mkdir -p "$out/rpm"
    cargo-generate-rpm --target-dir "$out" ${target:+--target "$target"} ${rpm_arch:+--arch "$rpm_arch"} \
        --variant "$package" --metadata-overwrite "$stage.toml" --auto-req find-requires --output "$out/rpm/" "$@"
}

form=$1
shift
packages=
while [ $# -gt 0 ]; do
    if [ "$1" = -- ]; then shift; break; fi
    packages="$packages $1"
    shift
done
for package in $packages; do
    case $form in
        deb) make_deb "$package" "$@" ;;
        rpm) make_rpm "$package" "$@" ;;
        *) echo "usage: packaging/make.sh deb|rpm PACKAGE... [-- ARGUMENT...]" >&2; exit 64 ;;
    esac
done
ls "$out/$form"
