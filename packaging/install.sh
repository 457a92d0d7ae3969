#!/bin/sh
# Puts what the packages have in its place. What is in which package is said here and nowhere else:
#
#     packaging/install.sh bellwired|bellwire-server|bellwire ...
#
# bellwired is the agent, bellwire-server the server, bellwire the tool with what app writers and
# integrators read. No file is in two of them. The environment says the rest:
#
#     PROGRAMS    the folder of the built programs
#     WRITERS     the folder of the same programs for this machine, which write their manual pages and
#                 completions; there are none if it is empty
#     DESTDIR     where everything is put instead of /
#     PREFIX, SYSCONFDIR
#                 where it will be found, /usr/local and /etc if absent
#     STYLE       debian: as Debian's policy has it
#
# It never replaces a configuration that is there.
set -eu
umask 022
cd "$(dirname "$0")/.."

: "${PROGRAMS:?says where the built programs are}"
WRITERS=${WRITERS-} DESTDIR=${DESTDIR-} PREFIX=${PREFIX:-/usr/local} SYSCONFDIR=${SYSCONFDIR:-/etc} STYLE=${STYLE-}

# Files $3... below the folder $2 with the mode $1.
put() {
    mode=$1 folder=$DESTDIR$2
    shift 2
    install -d -m 755 "$folder"
    install -m "$mode" "$@" "$folder"
}

# The same for files that name programs by where Debian has them.
put_adapted() {
    to=$1
    shift
    put 644 "$to" "$@"
    [ "$PREFIX" = /usr ] || for file; do
        sed "s|/usr/bin/|$PREFIX/bin/|g" "$file" > "$DESTDIR$to/${file##*/}"
    done
}

# The sample $1 as the configuration: every key is a comment, so that a default that changes changes for
# all who have not set it.
put_configuration() {
    folder=$DESTDIR$SYSCONFDIR/bellwire
    [ ! -e "$folder/$1" ] || return 0
    install -d -m 755 "$folder"
    sed 's/^\([a-z][a-z-]* = \)/# \1/; s/the values below are the defaults/take away the # of what you set/' \
        "examples/$1" > "$folder/$1"
}

# The program $1 with its pages and completions, which $2 writes, its completions if it is told $3 as well.
put_program() {
    put 755 "$PREFIX/bin" "$PROGRAMS/$1"
    [ -n "$WRITERS" ] || return 0
    written=$(mktemp -d)
    "$WRITERS/$2" man "$written"
    # Those of its commands are called like NAME-COMMAND.1.
    put_pages "$written/$1".1 $(find "$written" -name "$1-*.1" | LC_ALL=C sort)
    zsh=site-functions
    [ "$STYLE" != debian ] || zsh=vendor-completions
    "$WRITERS/$2" completions bash ${3-} > "$written/$1"
    put 644 "$PREFIX/share/bash-completion/completions" "$written/$1"
    "$WRITERS/$2" completions zsh ${3-} > "$written/_$1"
    put 644 "$PREFIX/share/zsh/$zsh" "$written/_$1"
    "$WRITERS/$2" completions fish ${3-} > "$written/$1.fish"
    put 644 "$PREFIX/share/fish/vendor_completions.d" "$written/$1.fish"
    rm -r "$written"
}

put_pages() {
    for page; do put 644 "$PREFIX/share/man/man${page##*.}" "$page"; done
}

# What systemd has to know of the program $1.
put_units() {
    put_adapted "$PREFIX/lib/systemd/system" systemd/system/"$1"*
    put 644 "$PREFIX/lib/systemd/system-preset" systemd/system-preset/50-"$1".preset
    put 644 "$PREFIX/lib/sysusers.d" systemd/sysusers.d/"$1".conf
    put 644 "$PREFIX/lib/tmpfiles.d" systemd/tmpfiles.d/"$1".conf
}

# The licences of the package $1; Debian's have a file copyright instead, by cargo-deb, and one of changes.
put_licences() {
    if [ "$STYLE" = debian ]; then
        install -d -m 755 "$DESTDIR$PREFIX/share/doc/$1"
        gzip -9nc packaging/deb/changelog > "$DESTDIR$PREFIX/share/doc/$1/changelog.Debian.gz"
    else
        put 644 "$PREFIX/share/doc/$1" LICENSE-MIT LICENSE-APACHE
    fi
}

put_samples() {
    package=$1
    shift
    for sample; do
        case $sample in *.py | *.sh) runs=755 ;; *) runs=644 ;; esac
        put "$runs" "$PREFIX/share/doc/$package/examples" "$sample"
    done
}

# The bus of the system reads its rules in two folders, whatever its own prefix and ours.
bus_rules=$SYSCONFDIR/dbus-1/system.d
[ "$PREFIX" != /usr ] || bus_rules=/usr/share/dbus-1/system.d

# What bellwired has besides its program.
agent_pages="man/bellwired*.5 man/bellwire-apps.d.5 man/bellwire-integration.7 man/bellwire-unifiedpush.7"
agent_samples="examples/agent.toml examples/org.example.Chat.toml"
# What bellwire-server has.
server_pages="man/bellwire-server*.[57]"
server_samples="examples/server.toml examples/mosquitto.conf"

# The files that $1 names by patterns, less those that $2 names.
but() {
    # shellcheck disable=SC2086  # patterns
    printf '%s\n' $1 | grep -vxF "$(printf '%s\n' $2)"
}

# shellcheck disable=SC2046,SC2086  # lists of files without spaces
place() {
    put_licences "$1"
    case $1 in
        bellwired)
            put_program bellwired bellwire --bellwired
            put_pages $agent_pages
            put_units bellwired
            put_adapted "$PREFIX/lib/systemd/user" systemd/user/*
            put 644 "$PREFIX/lib/systemd/user-preset" systemd/user-preset/*
            put_adapted "$PREFIX/share/dbus-1/services" dbus/session/*.service
            put_adapted "$PREFIX/share/dbus-1/system-services" dbus/system/*.service
            put 644 "$bus_rules" dbus/*.conf
            put 644 "$PREFIX/share/polkit-1/actions" dbus/*.policy
            put 644 "$PREFIX/share/bellwire/apps.d" packaging/README
            put_configuration agent.toml
            put_samples "$1" $agent_samples
            ;;
        bellwire-server)
            put_program bellwire-server bellwire-server
            put_pages $server_pages
            put_units bellwire-server
            put_configuration server.toml
            put_samples "$1" $server_samples
            ;;
        bellwire)
            put_program bellwire bellwire
            put_pages $(but "man/*.[57]" "$agent_pages $server_pages")
            put 644 "$PREFIX/share/dbus-1/interfaces" dbus/*.xml
            put 644 "$PREFIX/share/doc/bellwire" README.md CHANGELOG.md
            # As Debian calls it.
            [ "$STYLE" != debian ] || (cd "$DESTDIR$PREFIX/share/doc/bellwire" && mv CHANGELOG.md changelog && gzip -9n changelog)
            put_samples "$1" $(but "examples/*" "$agent_samples $server_samples")
            ;;
        *) echo "packaging/install.sh: there is no package $1" >&2; exit 64 ;;
    esac
}

for package; do place "$package"; done
