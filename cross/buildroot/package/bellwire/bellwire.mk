################################################################################
#
# bellwire
#
################################################################################

BELLWIRE_VERSION = 0.1.0
# As cross/source.sh calls it: Buildroot's own name for the archive of a package
# of cargo says how it was vendored.
BELLWIRE_SOURCE = bellwire-$(BELLWIRE_VERSION).tar.gz
BELLWIRE_SITE = $(call qstrip,$(BR2_PACKAGE_BELLWIRE_SOURCE))
BELLWIRE_SITE_METHOD = file
BELLWIRE_LICENSE = MIT or Apache-2.0
BELLWIRE_LICENSE_FILES = LICENSE-MIT LICENSE-APACHE
BELLWIRE_DEPENDENCIES = dbus

# The archive is made by cross/source.sh, which prints its hash: it is another
# one for every commit.
BR_NO_CHECK_HASH_FOR += $(BELLWIRE_SOURCE)

# As small as it gets, like the profile "device" of Cargo.toml.
BELLWIRE_CARGO_ENV = CARGO_PROFILE_RELEASE_OPT_LEVEL=z

BELLWIRE_CARGO_BUILD_OPTS = \
	--no-default-features \
	--features $(call qstrip,$(BR2_PACKAGE_BELLWIRE_FEATURES)) \
	--bin bellwired

# Manual pages and completions are written by programs that run here.
BELLWIRE_LAYOUT = \
	DESTDIR=$(TARGET_DIR) \
	PREFIX=/usr \
	SYSCONFDIR=/etc \
	PACKAGES=bellwired \
	PROGRAMS=target/$(RUSTC_TARGET_NAME)/$(if $(BR2_ENABLE_DEBUG),debug,release) \
	WRITERS=

define BELLWIRE_INSTALL_TARGET_CMDS
	$(TARGET_MAKE_ENV) $(MAKE) -C $(@D) install $(BELLWIRE_LAYOUT)
endef

define BELLWIRE_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(BELLWIRE_PKGDIR)/S95bellwired \
		$(TARGET_DIR)/etc/init.d/S95bellwired
endef

define BELLWIRE_USERS
	bellwire -1 bellwire -1 * /var/lib/bellwire - - Push daemon
endef

$(eval $(cargo-package))
