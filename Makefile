# Bellwire. `make help` lists the targets. Each first installs what it needs and lacks (Debian 12,
# as root or with sudo); see tests/setup.sh.

PREFIX = /usr/local
DESTDIR =
BIN = $(DESTDIR)$(PREFIX)/bin
SHARE = $(DESTDIR)$(PREFIX)/share
OUT = $(or $(CARGO_TARGET_DIR),target)
SETUP = tests/setup.sh
# For all builds but the quick ones of `make check`: the lock file is what was tested.
BUILD = cargo build --locked --bins
# The devices of `make cross` and `make test-arm`.
ARM = aarch64 armv7
# The programs under test can be ended at any step of a message's way; those for use cannot.
TESTED = --locked --features fault-points

.PHONY: help demo test test-receipts test-api test-systemd test-arm cross check build install bench setup clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1#\2/p' Makefile | column -t -s '#' 2>/dev/null || \
	    sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

demo: ## Show the main job: two servers, two devices, an app on each
	@$(SETUP) demo $(BUILD)
	@$(SETUP) demo cargo run --locked --quiet --bin bellwire -- demo

test: ## Run all tests
	@$(SETUP) test sh -c 'if cargo nextest --version >/dev/null 2>&1; \
	    then exec cargo nextest run $(TESTED); else exec cargo test --tests $(TESTED); fi'
	@/usr/bin/python3 tests/arm/run.py kept '$(OUT)/cross'

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

check: ## Formatting, lints, documentation, and the smaller builds
	@$(SETUP) check cargo fmt --check
	@$(SETUP) check cargo clippy --locked --all-targets --features fault-points -- -D warnings
	@RUSTDOCFLAGS='-D warnings' $(SETUP) check cargo doc --locked --no-deps
	@$(SETUP) check cargo check --locked --no-default-features --features agent,ws
	@$(SETUP) check cargo check --locked --no-default-features --features server,ws

build: ## Build the programs for use: small and optimized, takes minutes
	@$(SETUP) build $(BUILD) --release

install: build ## Install programs, manual, completions and samples below DESTDIR and PREFIX
	install -d '$(BIN)' '$(SHARE)/dbus-1/interfaces' '$(SHARE)/doc/bellwire/examples' \
	    '$(SHARE)/polkit-1/actions' '$(SHARE)/dbus-1/system.d' '$(SHARE)/bellwire/apps.d' \
	    $(foreach n,1 5 7,'$(SHARE)/man/man$(n)') '$(SHARE)/bash-completion/completions' \
	    '$(SHARE)/zsh/site-functions' '$(SHARE)/fish/vendor_completions.d'
	install -m 755 $(foreach p,bellwired bellwire-server bellwire,'$(OUT)/release/$(p)') '$(BIN)'
	install -m 644 dbus/*.xml '$(SHARE)/dbus-1/interfaces'
	install -m 644 dbus/org.bellwire.Push.conf '$(SHARE)/dbus-1/system.d'
	install -m 644 dbus/org.bellwire.policy '$(SHARE)/polkit-1/actions'
	install -m 644 README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE '$(SHARE)/doc/bellwire'
	install -m 644 examples/*.toml examples/*.c '$(SHARE)/doc/bellwire/examples'
	install -m 755 examples/*.py examples/*.sh '$(SHARE)/doc/bellwire/examples'
	rm -rf '$(OUT)/man' && mkdir -p '$(OUT)/man'
	'$(OUT)/release/bellwire' man '$(OUT)/man'
	'$(OUT)/release/bellwire-server' man '$(OUT)/man'
	'$(OUT)/release/bellwired' --man '$(OUT)/man'
	install -m 644 '$(OUT)'/man/*.1 '$(SHARE)/man/man1'
	install -m 644 man/*.5 '$(SHARE)/man/man5'
	install -m 644 man/*.7 '$(SHARE)/man/man7'
	for p in 'bellwire completions' 'bellwire-server completions' 'bellwired --completions'; do \
	    name=$${p%% *}; run="$(OUT)/release/$$p"; \
	    $$run bash > "$(SHARE)/bash-completion/completions/$$name" && \
	    $$run zsh > "$(SHARE)/zsh/site-functions/_$$name" && \
	    $$run fish > "$(SHARE)/fish/vendor_completions.d/$$name.fish" || exit 1; \
	done

bench: ## Measure throughput, latency and memory on this machine
	@$(SETUP) test $(BUILD) --profile speed
	@$(SETUP) test cargo run --locked --profile speed --quiet --bin bellwire -- bench

setup: ## Only install what is missing for all of these but the ARM ones
	@$(SETUP) all

clean: ## Remove what was built
	rm -rf target
