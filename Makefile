# `make help` lists what there is to do here.

PREFIX ?= /usr/local
CARGO ?= cargo
.DEFAULT_GOAL := build
.PHONY: all build kernel setup demo test lint lab soak bench install help

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

all: build kernel ## everything that `make install` installs

build: ## the pillbug command, target/release/pillbug
	@$(CARGO) build --release

kernel: ## the guest kernel, from Debian's source package or KERNEL_SOURCE=<tarball>
	@kernel-config/build.sh guest

setup: ## install what building and testing takes and this machine lacks
	@tests/setup.sh

demo: setup ## run a real Debian image in a microVM, here or in the lab
	@tests/demo.sh

test: setup ## everything that CI runs
	@tests/run.sh

lint: ## format and lint checks
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings
	@$(CARGO) clippy --quiet --test e2e -- -D warnings

lab: ## a shell on an emulated KVM host
	@tests/lab/lab.sh

soak: setup ## services used and killed at random in the lab, for MINUTES=60
	@tests/soak.sh $(or $(MINUTES),60)

bench: setup ## starts, memory, images, running containers, volumes and networks measured, where it takes KVM in the lab
	@for bench in run images containers volumes network; do tests/bench/$$bench.sh || exit 1; done

install: all ## install to PREFIX (/usr/local)
	install -D -m 755 target/release/pillbug $(DESTDIR)$(PREFIX)/bin/pillbug
	install -D -m 644 "$$(kernel-config/build.sh guest)/vmlinux" $(DESTDIR)$(PREFIX)/lib/pillbug/vmlinux
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|@PREFIX@|$(PREFIX)|' contrib/pillbug.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/pillbug.service
