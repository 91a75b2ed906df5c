# Two commands for a newcomer: `make run` and `make test`. Everything lives in .venv.
PYTHON ?= python3
PROMPT ?= The most beautiful thing about the sea is
NODES ?= 3
BIN := .venv/bin
export PROMPT  # reaches the shell as a variable: quotes in it do no harm

.PHONY: install dev run test test-slow test-nightly test-anvil lint clean

.venv/installed: pyproject.toml setup.py constraints.txt $(wildcard src/unisono/native/cpp/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Unisono needs Python 3.11 or newer; found $$($(PYTHON) --version). Try make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/installed  ## prepare .venv for use

dev: .venv/installed-dev  ## prepare .venv for development

run: .venv/installed  ## a local network answers PROMPT over NODES nodes, and the receipt is checked
	@$(BIN)/unisono run --nodes $(NODES) "$$PROMPT"

test: .venv/installed-dev  ## the tests that a developer runs by habit
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: .venv/installed-dev  ## the tests with the real model and real processes
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-nightly: .venv/installed-dev  ## 10,000 random sequences of every contract that holds coins
	@UNISONO_SEQUENCES=10000 UNISONO_EVM=translated $(BIN)/python -m pytest \
	  tests/settlement/test_conservation.py tests/settlement/test_court_money.py \
	  tests/settlement/test_committee_conservation.py $(ARGS)

ANVIL := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/unisono/anvil
test-anvil: .venv/installed-dev  ## settlement, and disputes about a small model, on anvil: npm fetches it
	@test -n "$$UNISONO_ANVIL" || test -d "$(ANVIL)/node_modules" || \
	  npm install --silent --no-audit --no-fund --prefix "$(ANVIL)" @foundry-rs/anvil@1.7.1
	@$(BIN)/python -m pytest tests/settlement tests/scenarios/test_court.py -m anvil \
	  -k "not default_model" $(ARGS)

lint: .venv/installed-dev  ## style, types, direction of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/lint-imports

clean:
	rm -rf .venv build *.egg-info
