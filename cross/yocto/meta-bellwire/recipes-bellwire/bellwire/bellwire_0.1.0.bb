# The agent. Its source has its crates in it, so there is no list of crates to keep up to date: cross/source.sh
# makes it, into a folder that FILESEXTRAPATHS or a mirror names. A distribution that builds from a repository
# instead inherits cargo-update-recipe-crates, and lets `bitbake -c update_crates bellwire` write the list.
SUMMARY = "Push messages for the apps of a device"
DESCRIPTION = "One daemon on the device holds one connection to its push server for every app, stores each message \
before it acknowledges it, and hands it over by D-Bus, once and in order."
HOMEPAGE = "https://bellwire.invalid/"
SECTION = "net"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE-MIT;md5=d5a6a2b23b5a3437d3ec644ca64369c2 \
                    file://LICENSE-APACHE;md5=13db55ab66e21183a498c0a7b4734726"

SRC_URI = "file://${BP}.tar.gz"

inherit cargo pkgconfig systemd useradd

CARGO_VENDORING_DIRECTORY = "${S}/VENDOR"
# What the device has use for; see "Build" in README.md.
BELLWIRE_FEATURES ?= "agent,ws"
CARGO_BUILD_FLAGS += "--no-default-features --features ${BELLWIRE_FEATURES} --bin bellwired"

# As small as it gets, like the profile `device` of Cargo.toml.
export CARGO_PROFILE_RELEASE_OPT_LEVEL = "z"
# BitBake strips the program itself, and keeps what it strips for debugging; one that is stripped already fails its QA.
export CARGO_PROFILE_RELEASE_STRIP = "none"

# What is not used of the SQLite that is compiled in, as in cross/config.toml.
export LIBSQLITE3_FLAGS = "-USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_RTREE \
                           -USQLITE_ENABLE_DBSTAT_VTAB -USQLITE_ENABLE_STAT4 -USQLITE_ENABLE_API_ARMOR -USQLITE_SOUNDEX \
                           -DSQLITE_OMIT_LOAD_EXTENSION"
# Or SQLite opens no file that is dated after 2038.
TARGET_CFLAGS:append:arm = " -D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64"

# SQLite is compiled in, unless the system's is to be used, 3.45.3 or later.
PACKAGECONFIG ??= ""
PACKAGECONFIG[system-sqlite] = ",,sqlite3"
export LIBSQLITE3_SYS_USE_PKG_CONFIG = "${@bb.utils.contains('PACKAGECONFIG', 'system-sqlite', '1', '0', d)}"

do_install() {
    oe_runmake -C ${S} install DESTDIR=${D} PREFIX=${prefix} SYSCONFDIR=${sysconfdir} PACKAGES=bellwired \
        PROGRAMS=${B}/target/${CARGO_TARGET_SUBDIR} WRITERS=
    # Its number is lower than that of the preset which SYSTEMD_AUTO_ENABLE becomes, and the lower one decides. That
    # for users stays: without one systemd would enable a second agent in each session.
    rm -r ${D}${prefix}/lib/systemd/system-preset
}

USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --home-dir ${localstatedir}/lib/bellwire --no-create-home \
                       --shell ${base_sbindir}/nologin bellwire"

SYSTEMD_SERVICE:${PN} = "bellwired.service"
# Which bus the agent is on is the image's choice.
SYSTEMD_AUTO_ENABLE ?= "disable"

FILES:${PN} += "${prefix}/lib ${datadir}/dbus-1 ${datadir}/polkit-1"
CONFFILES:${PN} = "${sysconfdir}/bellwire/agent.toml"

RDEPENDS:${PN} = "dbus"
RRECOMMENDS:${PN} = "ca-certificates"
