# The few verbs of this project. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help demo build wheel wheel-start lint test test-sglang test-k8s test-redis test-browser coverage chaos fuzz bench bench-cpu fmt

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
# maturin installs into the environment that VIRTUAL_ENV names.
export VIRTUAL_ENV := $(VENV)
unexport CONDA_PREFIX
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
SEED ?= 1
SUITE ?= bookworm
TARGET ?= $(shell uname -m)-unknown-linux-gnu
WHEEL_BIN := $(CURDIR)/build/wheel/bin
IN_WHEEL := PATH="$(WHEEL_BIN):$$PATH" VIRTUAL_ENV=$(CURDIR)/build/wheel
FAULTS ?= 10000
FUZZ_SECS ?= 60

# A machine without a network may have the release of rust-toolchain.toml under the name `stable` only.
PINNED := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
ifeq ($(shell cargo --version 2>/dev/null),)
ifneq ($(findstring cargo $(PINNED) ,$(shell cargo +stable --version 2>/dev/null)),)
export RUSTUP_TOOLCHAIN := stable
endif
endif

RUST := Cargo.toml Cargo.lock build.rs $(shell find src crates -name '*.rs' -o -name Cargo.toml)
# A macro declares these files, so `cargo fmt` does not find them by itself.
LISTED := $(wildcard crates/routing/src/policy/*.rs crates/routing/src/policy/*/mod.rs) $(wildcard crates/gateway/src/app/sources/*.rs crates/gateway/src/app/sources/*/mod.rs)
BUILT := $(VENV)/.built
REAL := py_test/real_sglang
BROWSER ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
SGLANG_VENV ?= $(CURDIR)/.venv-sglang
CLUSTER := py_test/real_kubernetes
KUBERNETES_DIR ?= $(CURDIR)/.kubernetes
OPERATIONS ?= 1000
REDIS_SERVER ?= $(or $(shell command -v redis-server || command -v valkey-server),redis-server)

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(BUILT) ## simulated workers, a gateway, some load, a table; DEMO_ARGS="--workers 8 --exit"
	$(BIN)/python -m sgl_model_gateway demo $(DEMO_ARGS)

build: $(BUILT) ## .venv with everything, the extension as it is shipped (release)

# zig links against the symbols of any release of glibc, so one wheel serves every Linux from 2014 on. No path of the machine is in the extension, and its
# time is that of the commit. With PGO=1 the compiler knows what requests pass through (packaging/profile.sh): a fifth fewer instructions, twice the time.
WHEEL_ARGS := --profile wheel --locked --target $(TARGET)
# Without that knowledge, code that is copied into its callers is most of the size.
WHEEL_RUST := $(if $(PGO),-Cprofile-use=$(CURDIR)/build/wheel/profile/merged.profdata,-Cllvm-args=-inline-threshold=75)
wheel: export RUSTFLAGS := --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo --remap-path-prefix=$(CURDIR)=/source $(RUSTFLAGS)
wheel: build/wheel/.installed ## manylinux2014 wheel and source distribution in dist/, checked; PGO=1, TARGET=aarch64-unknown-linux-gnu
	rm -rf build/wheel/out LICENSE-THIRD-PARTY.txt
	mkdir -p build/wheel/out dist
	$(IN_WHEEL) maturin sdist --out build/wheel/out
	$(WHEEL_BIN)/python packaging/licenses.py --target $(TARGET)
	$(if $(PGO),$(IN_WHEEL) packaging/profile.sh $(WHEEL_ARGS))
	$(IN_WHEEL) RUSTFLAGS="$$RUSTFLAGS $(WHEEL_RUST)" \
		SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)} \
		maturin build $(WHEEL_ARGS) --zig --compatibility manylinux2014 --out build/wheel/out
	$(WHEEL_BIN)/python packaging/check_wheel.py build/wheel/out/*.whl
	mv build/wheel/out/* dist/

wheel-start: ## the wheel of dist/ in a chroot of Debian, as root, with debootstrap; SUITE=bullseye (which builds a Python)
	packaging/start_in_chroot.sh $(SUITE) dist/*-abi3-*_$(shell uname -m).whl

build/wheel/.installed: packaging/requirements.txt
	$(PYTHON) -m venv build/wheel
	$(WHEEL_BIN)/python -m pip install --quiet -r packaging/requirements.txt
	@touch $@

test: ## Rust tests, then Python tests; PYTEST_ARGS="-k signals"
	cargo test --workspace --quiet
	@$(MAKE) --no-print-directory $(BUILT)
	$(BIN)/python -m pytest -q py_test/ $(PYTEST_ARGS)

test-sglang: $(BUILT) $(SGLANG_VENV)/.installed ## the launcher with the real SGLang on this CPU; installs some 8 GB once
	SGLANG_VENV=$(SGLANG_VENV) $(BIN)/python -m pytest $(REAL) $(PYTEST_ARGS)

test-k8s: $(BUILT) $(KUBERNETES_DIR)/.installed ## pods of a real kube-apiserver; builds it once from Debian's source package, some minutes; SEED=7
	KUBERNETES_DIR=$(KUBERNETES_DIR) SEED=$(SEED) OPERATIONS=$(OPERATIONS) $(BIN)/python -m pytest -s $(CLUSTER) $(PYTEST_ARGS)

test-redis: ## gateways that share a real Redis (apt-get install redis-server): frozen, killed, back
	REDIS_SERVER=$(REDIS_SERVER) cargo test --quiet -p gateway --test it replicas

test-browser: $(BUILT) $(VENV)/.browser ## the fleet page, and a page of another origin, in Chromium (apt-get install chromium); SCREENSHOTS=DIR
	BROWSER=$(BROWSER) $(BIN)/python -m pytest py_test/browser $(PYTEST_ARGS)

# Drives the Chromium that is there; it brings none of its own.
$(VENV)/.browser: $(BUILT)
	$(BIN)/python -m pip install --quiet 'playwright>=1.50,<2'
	@touch $@

$(SGLANG_VENV)/.installed: $(REAL)/install.sh $(REAL)/requirements.txt $(REAL)/make_model.py
	PYTHON=$(PYTHON) $(REAL)/install.sh $(SGLANG_VENV)
	@touch $@

$(KUBERNETES_DIR)/.installed: $(CLUSTER)/install.sh
	$(CLUSTER)/install.sh $(KUBERNETES_DIR)
	@touch $@

# Not the launchers that are ended at a random moment: coverage's own start may take the signal.
coverage: $(BUILT) ## which lines of Python the unit and integration tests run
	$(BIN)/python -m coverage run -m pytest -q py_test/unit py_test/integration \
		--deselect py_test/integration/test_launch_kills.py
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --skip-covered

chaos: $(BUILT) ## faults drawn from a seed against real processes; SEED=7 FAULTS=1000 (about 15 a second)
	SEED=$(SEED) FAULTS=$(FAULTS) $(BIN)/python -m pytest py_test/e2e/faults/test_chaos.py py_test/e2e/faults/test_chaos_pairs.py -s

fuzz: ## a minute of every fuzz target by cargo-fuzz, or mutations of their corpus where it is not installed; FUZZ_SECS=600
	@if cargo +nightly fuzz --version >/dev/null 2>&1; then \
		for target in $$(ls fuzz/fuzz_targets | sed 's/\.rs$$//'); do \
			cargo +nightly fuzz run --fuzz-dir fuzz $$target fuzz/corpus/$$target -- \
				-dict=fuzz/$$target.dict -max_total_time=$(FUZZ_SECS) || exit 1; \
		done; \
	else \
		echo "cargo-fuzz needs a nightly compiler, which is not installed: 100000 mutations per target instead"; \
		PROPTEST_CASES=100000 cargo test -p gateway --lib fuzz; \
	fi

lint: $(BUILT) ## formatting, clippy, ruff, mypy, the stub against the extension, and dependencies if cargo-deny is there
	cargo fmt --all --check -- $(LISTED)
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy bench examples packaging
	$(BIN)/stubtest --concise --allowlist py_test/stubtest_allowlist.txt sgl_model_gateway.sgl_model_gateway_rs
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --offline check --hide-inclusion-graph bans licenses sources; \
	else \
		echo "cargo-deny is not installed: licences, bans and sources of dependencies are not checked"; \
	fi

fmt: $(BUILT) ## format everything, and write what follows from other files: the stub's enums, docs/options.md, the PrometheusRule
	cargo fmt --all -- $(LISTED)
	$(BIN)/python py_test/unit/test_stub.py
	$(BIN)/python py_test/unit/test_readme.py
	$(BIN)/python py_test/unit/test_prometheus_rule.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BUILT) ## every figure of bench/RESULTS.md as a page with pictures, peers included; BENCH_ARGS="--sections cpu,tls"
	bench/install_peers.sh
	cargo build --release -p bench-tools
	$(BIN)/python bench/suite.py $(BENCH_ARGS)

bench-cpu: $(BUILT) ## CPU per request against nginx and the peers that are installed; BENCH_ARGS="--scenarios json_small"
	cargo build --release -p bench-tools
	$(BIN)/python bench/compare.py $(BENCH_ARGS)

$(BUILT): pyproject.toml $(RUST)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/maturin || $(BIN)/python -m pip install --quiet 'maturin>=1.9,<2'
	$(BIN)/maturin develop --release --extras dev
	@touch $@
