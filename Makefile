# Everything happens in .venv; nothing needs to be installed or activated by hand.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SOURCES := src tests benchmarks tools
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --no-header -n 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s%s\n", $$1, $$2 }'

setup: $(STAMP)  ## install into .venv, once, and again when pyproject.toml or constraints.txt change

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo "cannot make .venv: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## train three small nets, judge them, write demo/report.html (no download)
	$(BIN)/ironrank demo --out demo

test: setup  ## run the tests, without those marked slow or gpu
	@$(PYTEST) -m "not slow and not gpu"

test-slow: setup  ## run the tests that take minutes
	@$(PYTEST) -m "slow and not gpu" --timeout 3600

check: setup  ## format, lint (docstrings included), types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

bench: setup  ## measure time and memory of the training step against dense
	$(BIN)/ironrank bench

clean:  ## remove what was made, but for .venv
	rm -rf demo build dist report.html .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
