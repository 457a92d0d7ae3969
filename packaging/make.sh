#!/bin/sh
# Makes packages of programs that are built; each has what packaging/install.sh puts in its place.
#
#     packaging/make.sh deb|rpm PACKAGE... [-- ARGUMENT OF CARGO DEB OR RPMBUILD...]
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

# What Rust calls the machine, and what RPM does.
rpm_arch=
case ${MACHINE-} in
    '') target= ;;
    aarch64) target=aarch64-unknown-linux-gnu rpm_arch=aarch64 ;;
    armv7) target=armv7-unknown-linux-gnueabihf rpm_arch=armv7hl ;;
    x86_64) target=x86_64-unknown-linux-gnu rpm_arch=x86_64 ;;
    *) echo "packaging/make.sh: cross/build.sh knows no machine $MACHINE" >&2; exit 64 ;;
esac

# Puts the files of the package $1 in the style $2 where cargo-deb takes what it calls target/release.
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
    made=$(cargo-deb --quiet --locked --no-build ${target:+--target "$target"} --variant "$package" \
        --output "$out/deb/" "$@")
    echo "$made"
    # There are no lists of what is in which version of another machine's library, and cargo-deb names that of the
    # compiler. In those of this machine's are symbols, but not that it sets packed addresses.
    if [ -n "$target" ] || needs_libc "$PROGRAMS/$package" | grep -q RELR; then
        name_libc "$made" "$PROGRAMS/$package"
    fi
}

# What the program $1 needs of the C library, by the library's own names.
needs_libc() { readelf --wide --version-info "$1" | grep -o 'GLIBC_[0-9A-Z_.]*' | sort -u; }

# The package $1 needs the version of the C library that its program $2 does. glibc packs addresses from 2.36 on.
name_libc() {
    needed=$(needs_libc "$2" | sed 's/ABI_DT_RELR/2.36/' | grep '_[0-9]' | sort -Vu | tail -n 1)
    unpacked=$(mktemp -d)
    dpkg-deb --raw-extract "$1" "$unpacked/package"
    sed -i "s/libc6\(:[a-z0-9]*\)\{0,1\} (>= [^)]*)/libc6 (>= ${needed#GLIBC_})/" "$unpacked/package/DEBIAN/control"
    dpkg-deb --root-owner-group -Zxz --build "$unpacked/package" "$1" >/dev/null
    rm -r "$unpacked"
}

# What is in the stage, as rpmbuild wants to have it told. A folder is owned by every package that puts something
# into it, but those that a system has without any, and systemd's.
rpm_files() {
    (cd "$stage" && find . -mindepth 1 \( -type d -o -type f \) | LC_ALL=C sort) | while read -r place; do
        case ${place#.} in
            /etc | /usr | /usr/bin | /usr/lib | /usr/share | /usr/share/doc | /usr/share/man | /usr/share/man/man?) ;;
            /usr/lib/systemd | /usr/lib/systemd/* | /usr/lib/sysusers.d | /usr/lib/tmpfiles.d)
                [ -d "$stage/$place" ] || echo "${place#.}"
                ;;
            */LICENSE-*) echo "%license ${place#.}" ;;
            *)
                if [ -d "$stage/$place" ]; then echo "%dir ${place#.}"; continue; fi
                case $place in ./etc/*) echo "%config(noreplace) ${place#.}" ;; *) echo "${place#.}" ;; esac
                ;;
        esac
    done
}

# By rpmbuild: cargo-deb's sibling cargo-generate-rpm cannot own folders, mark files as licences, or ask for systemd
# when the scripts of a package run.
make_rpm() {
    package=$1
    shift
    stage "$package" ''
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    mkdir -p "$out/rpm"
    # Names that rpmbuild can read, whatever the target folder is called.
    top=$(mktemp -d)
    trap 'rm -rf "$top"' EXIT
    trap 'exit 1' HUP INT TERM
    ln -s "$(cd "$stage" && pwd)" "$top/stage"
    rpm_files > "$top/files"
    # Programs stay as they were built, and no time and name of this machine gets into a package.
    rpmbuild --quiet -bb "$@" --nodeps --target "${rpm_arch:-$(uname -m)}-linux" \
        --define "source_version $version" --define "_topdir $top" \
        --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
        --define 'debug_package %{nil}' --define '__os_install_post %{nil}' --define '_build_id_links none' \
        --define '__requires_exclude_from ^/usr/share/doc/' --define '_binary_payload w19.zstdio' \
        --define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' \
        --define '_buildhost bellwire' "packaging/rpm/$package.spec"
    mv "$top/RPMS/"*.rpm "$out/rpm/"
    rm -rf "$top"
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
