# Bellwire. `make help` lists the targets. Each first installs what it needs and lacks (Debian 12,
# as root or with sudo); see tests/setup.sh.

OUT = $(or $(CARGO_TARGET_DIR),target)
# Where `make install` puts what, as the command line or the environment says it; DESTDIR may be there too.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
# What it puts there. WRITERS are the programs for this machine, which write their manual pages
# and completions: if PROGRAMS are for another one and there are none, WRITERS is empty.
PACKAGES = bellwired bellwire-server bellwire
PROGRAMS = $(OUT)/$(if $(MACHINE),cross/$(MACHINE),release)
WRITERS = $(if $(MACHINE),$(OUT)/release,$(PROGRAMS))
# Programs that somebody names are not built; for another machine only those are that write pages.
BUILT = $(if $(filter file,$(origin $(if $(MACHINE),WRITERS,PROGRAMS))),build)
BUILDS = $(sort $(if $(MACHINE),,$(PACKAGES)) $(PACKAGES:bellwired=bellwire))
# Of `make deb` and `make rpm`: what cross/build.sh has built programs for; this machine if it is empty.
MACHINE =
SETUP = tests/setup.sh
# For all builds but the quick ones of `make check`: the lock file is what was tested.
BUILD = cargo build --locked --bins
# The devices of `make cross` and `make test-arm`.
ARM = aarch64 armv7
# The programs under test can be ended at any step of a message's way; those for use cannot.
TESTED = --locked --features fault-points

.PHONY: help demo test arm test-receipts test-api test-systemd test-packages test-arm cross check lint memory build install deb rpm bench setup clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1#\2/p' Makefile | column -t -s '#' 2>/dev/null || \
	    sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

demo: ## Show the main job: two servers, two devices, an app on each
	@$(SETUP) demo $(BUILD)
	@$(SETUP) demo cargo run --locked --quiet --bin bellwire -- demo

test: ## Run all tests
	@$(SETUP) test sh -c 'if cargo nextest --version >/dev/null 2>&1; \
	    then exec cargo nextest run $(TESTED); else exec cargo test --tests $(TESTED); fi'
	@$(MAKE) --no-print-directory arm

# The short form of `make test-arm`, where the compilers for it are.
arm:
	@if [ "$$(uname -m)" = x86_64 ] && grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release; then \
	    cross/build.sh armv7 --quick --features agent,server,ws && \
	    $(SETUP) arm /usr/bin/python3 tests/arm/run.py armv7 '$(OUT)/cross/armv7-quick'; \
	else echo 'The programs for ARM are not tried: they are built on Debian 12 on x86-64'; fi

test-receipts: ## Tell an application server 10,000 receipts for each of two apps while both are killed; takes minutes
	@$(SETUP) test env BELLWIRE_MESSAGES=10000 cargo test $(TESTED) --test receipts every_message

test-api: ## Judge the HTTP API by its own document for some minutes, with thousands of requests
	@$(SETUP) test env BELLWIRE_TEST_API=long \
	    cargo test $(TESTED) --test api document_says -- --nocapture --test-threads 1

test-systemd: ## Test who may be an app and how apps start, in a container with a real systemd; needs root
	@$(SETUP) systemd $(BUILD)
	@$(SETUP) systemd tests/systemd/run.py

cross: ## Build bellwired for ARM devices, 64 and 32 bits, and hold each to its size budget; takes an hour or less
	@for machine in $(ARM); do \
	    for features in agent,ws agent,ws,mqtt,unifiedpush; do \
	        cross/build.sh $$machine --features $$features --system-sqlite && \
	        cross/build.sh $$machine --features $$features || exit; \
	    done; \
	done

test-arm: ## Build for ARM, and deliver messages by those programs under qemu; takes half an hour or less
	@for machine in $(ARM); do \
	    for features in server,ws agent,ws,mqtt,unifiedpush; do \
	        cross/build.sh $$machine --features $$features || exit; \
	    done; \
	    $(SETUP) arm /usr/bin/python3 tests/arm/run.py $$machine '$(OUT)/cross'/$$machine || exit; \
	done

test-packages: ## Build the packages twice, lint, install, boot, upgrade and remove them; needs root, takes half an hour
	@$(SETUP) judge tests/packages/run.py
	@$(MAKE) --no-print-directory deb
	@$(SETUP) systemd tests/systemd/run.py --packages '$(OUT)/deb' units guide

check: lint memory ## All that needs no test to run: `make -j2` does both at once

lint: ## Formatting, lints, documentation, the smaller builds
	@$(SETUP) check cargo fmt --check
	@$(SETUP) check cargo clippy --locked --all-targets --features fault-points -- -D warnings
	@RUSTDOCFLAGS='-D warnings' $(SETUP) check cargo doc --locked --no-deps
	@$(SETUP) check cargo check --locked --no-default-features --features agent,ws
	@$(SETUP) check cargo check --locked --no-default-features --features server,ws

memory: ## Measure an idle bellwired as the packages have and start it, and hold it to its budget
	@$(SETUP) build packaging/build.sh bellwired
	@$(SETUP) demo $(BUILD) --features fault-points
	@$(SETUP) demo env "$$(sed -n 's/^Environment=//p' systemd/system/bellwired.service)" \
	    '$(OUT)/debug/bellwire' bench --agent '$(OUT)/release/bellwired'

build: ## Build the programs for use: small and optimized, takes minutes
	@$(SETUP) build packaging/build.sh $(BUILDS)

install: $(BUILT) ## Install PACKAGES below DESTDIR and PREFIX; programs that are built already from the folder PROGRAMS
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' PROGRAMS='$(PROGRAMS)' WRITERS='$(WRITERS)' \
	    packaging/install.sh $(PACKAGES)

deb rpm: $(BUILT)
	@MACHINE='$(MACHINE)' PROGRAMS='$(PROGRAMS)' WRITERS='$(WRITERS)' $(SETUP) package packaging/make.sh $@ $(PACKAGES)

deb: ## Make the Debian packages, into deb of the target folder
rpm: ## Make the RPM packages, into rpm of the target folder

bench: ## Measure throughput, latency and memory on this machine
	@$(SETUP) test $(BUILD) --profile speed
	@$(SETUP) test cargo run --locked --profile speed --quiet --bin bellwire -- bench

setup: ## Only install what is missing for all of these but packages and ARM
	@$(SETUP) all

clean: ## Remove what was built
	rm -rf '$(OUT)'
