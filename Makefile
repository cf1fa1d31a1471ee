# `make demo` and `make test` are each the only command to type on a fresh machine: whatever they need is
# set up first, in $(VENV), and again whenever pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
TEST_ARGS ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-lab lab lab-image bench bench-lab lint typecheck clean venv
# A recipe that fails half-way must not leave its target behind, looking finished.
.DELETE_ON_ERROR:

help:
	@echo "make demo       the main job on two sites of this machine (DEMO_ARGS='--size \"1 GB\"')"
	@echo "make test       every test that needs no privileges (TEST_ARGS='-k pins')"
	@echo "make test-lab   the tests with name spaces of their own (root; some also in user name spaces)"
	@echo "make lab        three sites with a network between them, and a prompt at one (root)"
	@echo "make bench      every benchmark that needs no privileges; each prints a table"
	@echo "make bench-lab  those on a network between sites (root)"
	@echo "make lint       ruff"
	@echo "make typecheck  mypy"
	@echo "make venv       set up $(VENV) and nothing else"
	@echo "make clean      remove everything that these made"

demo: $(VENV)/.installed-demo
	$(BIN)/dask pools demo $(DEMO_ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/pytest --ignore=tests/lab --numprocesses 2 --dist loadfile $(TEST_ARGS)

# Status 5 is pytest's "no tests were collected".
test-lab: $(VENV)/.installed-dev
	@mkdir -p tests/lab
	$(BIN)/pytest tests/lab $(TEST_ARGS) || { status=$$?; [ $$status -eq 5 ] || exit $$status; }

# What the tests with Docker would otherwise wait for; see tests/lab/containers.py.
lab-image: $(VENV)/.installed-dev
	$(BIN)/python tests/lab/containers.py

lab: $(VENV)/.installed-dev
	@$(BIN)/python tests/lab/prompt.py

# Those that need the lab's network; `make bench` runs the others.
LAB_BENCHMARKS := benchmarks/mesh.py benchmarks/original_table.py

bench: BENCHMARKS = $(filter-out $(LAB_BENCHMARKS),$(wildcard benchmarks/*.py))
bench-lab: BENCHMARKS = $(LAB_BENCHMARKS)
bench bench-lab: $(VENV)/.installed-dev
	@missed=; for benchmark in $(BENCHMARKS); do \
		echo "== $$benchmark"; $(BIN)/python "$$benchmark" || missed="$$missed $$benchmark"; echo; \
	done; [ -z "$$missed" ] || { echo "Not as wanted:$$missed" >&2; exit 1; }

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy

venv: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) .lab-docker .oldest-dask build dist demo.png .mypy_cache .pytest_cache .ruff_cache dask-scratch-space
	find src catalog tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# pip and not python is the target: where ensurepip is missing, `python3 -m venv` leaves a python behind
# before it fails. Debian keeps ensurepip in a package of its own.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
		echo "No $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11. Name a newer one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && apt-get install -yq --no-install-recommends python3-venv; \
		else \
			echo "$(PYTHON) cannot make virtual environments yet. Type this, then make again:" >&2; \
			echo "    sudo apt-get install --no-install-recommends python3-venv" >&2; \
			exit 1; \
		fi; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
