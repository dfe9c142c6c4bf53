# make demo    complete a Python function and measure it     make test    format, lint, types, tests
# make bench   the measured table of the README              make asan    native tests, sanitizers on
# make format  rewrite the sources in the house style        make clients LiteLLM with a real server
# make clean   remove what make made                       make long    tests that take minutes

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
# Tests need PyTorch. Its CPU build is enough and ten times smaller than the one with CUDA: where
# the default package is the large one, name a wheel of the small one, make test TORCH=FILE.whl
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
MADE := $(VENV)/.made
NATIVE := $(shell find native -name '*.cpp' -o -name '*.h' -o -name '*.inc')
SANITIZED := build/asan
PRELOAD = $(shell $${CXX:-g++} -print-file-name=libasan.so):$(shell $${CXX:-g++} -print-file-name=libubsan.so)
TESTS ?= tests
# Processes that share out the tests, each on a core of its own and with memory of its own.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
CLIENTS := build/clients

.PHONY: help build demo bench test long lint types format asan clients clean

help:
	@sed -n '1,4s/^# //p' Makefile

$(MADE)/environment: .ci/check-machine
	@.ci/check-machine $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install "scikit-build-core>=1.1" "nanobind>=3.1"
	@mkdir -p $(MADE) && touch $@

$(MADE)/forerun: $(MADE)/environment pyproject.toml CMakeLists.txt $(NATIVE)
	@.ci/check-machine $(PYTHON)
	$(PIP) install --no-build-isolation --config-settings=cmake.define.FORERUN_WERROR=ON --editable .
	@touch $@

$(MADE)/torch: $(MADE)/environment
	$(PIP) install "$(TORCH)"
	@touch $@

$(MADE)/test: $(MADE)/forerun $(MADE)/torch
	$(PIP) install --no-build-isolation --config-settings=cmake.define.FORERUN_WERROR=ON --editable ".[test,torch,hub,train,serve]"
	@touch $@

build: $(MADE)/forerun

demo: $(MADE)/forerun
	@$(BIN)/forerun demo --temperature 0.5 --seed 1 --max-tokens 120

bench: $(MADE)/forerun
	$(BIN)/forerun bench forward --random 260M --num-tokens 1,3,4,6,16,32 --context 64
	$(BIN)/forerun bench forward --random 6M --propose 6 --threads 1
	$(BIN)/forerun bench decode --max-tokens 128
	$(BIN)/forerun bench decode --max-tokens 128 --temperature 0.7 --seed 0

lint: $(MADE)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

types: $(MADE)/test
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest $(TESTS) -m "not alone and not long" -n $(WORKERS) --dist worksteal || [ $$? = 5 ]
	$(BIN)/python -m pytest $(TESTS) -m "alone and not long" || [ $$? = 5 ] # 5: none is asked for
	@[[ "$(TESTS)" != tests ]] || $(MAKE) --no-print-directory clients

long: $(MADE)/test
	$(BIN)/python -m pytest $(TESTS) -m long -s

format: $(MADE)/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(NATIVE)

# A second environment that sees the first one's packages but not its forerun.
$(SANITIZED)/.made: $(MADE)/test pyproject.toml CMakeLists.txt $(NATIVE) $(shell find src -name '*.py')
	$(PYTHON) -m venv $(SANITIZED)/venv
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(echo $(SANITIZED)/venv/lib/python3*/site-packages)/base.pth
	$(SANITIZED)/venv/bin/python -m pip --quiet install --no-deps --no-build-isolation \
	  --config-settings=build-dir=$(SANITIZED)/cmake --config-settings=cmake.build-type=RelWithDebInfo \
	  --config-settings=cmake.define.FORERUN_SANITIZE=ON --config-settings=install.strip=false .
	@touch $@

asan: $(SANITIZED)/.made
	cd tests && LD_PRELOAD=$(PRELOAD) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  ../$(SANITIZED)/venv/bin/python -m pytest -p no:cacheprovider --capture=sys native

# LiteLLM brings 250 MB and an older client of OpenAI's: a second environment over the first.
$(CLIENTS)/.made: $(MADE)/test
	$(PYTHON) -m venv $(CLIENTS)/venv
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$(echo $(CLIENTS)/venv/lib/python3*/site-packages)/base.pth
	$(CLIENTS)/venv/bin/python -m pip install --quiet --disable-pip-version-check "litellm>=1.80"
	@touch $@

# Minutes at most, and a sentence where it cannot be had: what skips must not take the time of what runs.
clients: $(MADE)/test
	@if timeout 240 $(MAKE) --no-print-directory $(CLIENTS)/.made; then \
	  $(CLIENTS)/venv/bin/python -m pytest -p no:cacheprovider tests/serve/test_other_clients.py -k litellm; \
	else echo "forerun: LiteLLM could not be installed; its tests are skipped" >&2; fi

clean:
	rm -rf $(VENV) build
