# make test        lint and tests                       make reproduce   run the numbered notebooks
# `make help` lists everything. Needs GNU make 3.81 or newer, a POSIX shell and Python 3.11 or newer.

PYTHON ?= python3
PRESET ?= demo
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: help setup reproduce test lint lab benchmark weights lock clean
.DEFAULT_GOAL := help

help:
	@echo "make setup                   create $(VENV) from requirements.lock (the others do so by themselves)"
	@echo "make reproduce               run the notebooks; PRESET=smoke|demo|full (now: $(PRESET)), ARGS='--only 03 --force'"
	@echo "make test                    lint and all tests, in a process per core"
	@echo "make lint                    ruff check, format check, and what a wing may import"
	@echo "make lab                     open the notebooks in JupyterLab"
	@echo "make lock                    recompile requirements.lock from pyproject.toml; ARGS=--upgrade for newer releases"
	@echo "make benchmark               how fast this machine is; ARGS='--all --out costs.csv' for all parts"
	@echo "make weights                 make the model that ships; ARGS='--images DIR --out DIR'"
	@echo "make clean                   remove caches and build leftovers; runs/, data/ and $(VENV) stay"
	@echo "another Python:              make setup PYTHON=python3.12"

setup: $(READY)

# The stamp is written last, and removed before anything is changed: an environment without it was interrupted half-way
# and is made anew from nothing, one with an old stamp is brought up to date in place. pip's success leaves a mark of its
# own, because a pipe keeps only the exit status of its last command.
$(READY): requirements.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "no $(PYTHON) here: install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer, $(PYTHON) is $$("$(PYTHON)" -V 2>&1): name another, e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: on Debian or Ubuntu, sudo apt install python3-venv" >&2; exit 1; }
	@if [ ! -f $@ ]; then echo "Creating $(VENV)"; "$(PYTHON)" -m venv --clear $(VENV); fi
	@rm -f $@ $(VENV)/.installed
	@echo "Installing the packages of requirements.lock (several minutes and GB the first time; a dot is a package)"
	@{ $(PIP) install --progress-bar off --require-hashes -r requirements.lock && touch $(VENV)/.installed; } | awk '\
		/^(Collecting|Processing|Requirement already)/ { printf "."; fflush() } \
		/^Installing collected/ { print "\nUnpacking them"; fflush() } \
		END { print "" }'
	@test -f $(VENV)/.installed
	@$(PIP) install --quiet --no-deps --editable .
	@touch $@
	@echo "$(VENV) is ready"

reproduce: $(READY)
	@$(BIN)/python -m vtamiq reproduce --preset $(PRESET) $(ARGS)

test: lint
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

lab: $(READY)
	@$(BIN)/jupyter lab notebooks

benchmark: $(READY)
	@$(BIN)/python -m tools.benchmark $(ARGS)

weights: $(READY)
	@$(BIN)/python -m tools.weights $(ARGS)

lock: $(READY)
	@test -x $(BIN)/uv || $(PIP) install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet $(ARGS) -o requirements.lock

clean:
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis lightning_logs
	@find . -path ./$(VENV) -prune -o -path ./runs -prune -o -path ./data -prune -o \
		-type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
