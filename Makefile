# Everything a developer types. `make help` lists it; CONTRIBUTING.md explains it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Servers live in /usr/sbin on Debian, which a person's PATH lacks.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check bench dist clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(VENV)/.ready-test $(VENV)/.ready-check $(VENV)/.ready-dist ## make the virtual environment with everything in it

demo: $(VENV)/.ready-run ## run the main job once, from a registry to a result, and show what it cost
	@$(BIN)/proplet demo

test: $(VENV)/.ready-test ## run the tests against real servers (installs these where it may)
	@packaging/test-servers.sh servers
	@$(BIN)/pytest -m "not systemd" $(ARGS)

test-all: $(VENV)/.ready-test ## the same, and a Debian that boots with the service (root); builds Kubernetes once
	@packaging/test-servers.sh all
	@$(BIN)/pytest $(ARGS)

check: $(VENV)/.ready-check ## lint, format, types, layers, the service unit
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@packaging/check-unit.sh

bench: $(VENV)/.ready-test ## print the measured figures with their budgets (QUICK=1: the short variant)
	@packaging/test-servers.sh servers
	@$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(ARGS)

dist: $(VENV)/.ready-dist ## build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .

clean: ## remove everything that make has made
	rm -rf $(VENV) build dist proplet.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is noted by a stamp per group of dependencies, so that it is done again only when they change.
$(VENV)/.ready-run: pyproject.toml packaging/setup.sh
	@PYTHON="$(PYTHON)" packaging/setup.sh $(VENV) run

$(VENV)/.ready-%: $(VENV)/.ready-run
	@PYTHON="$(PYTHON)" packaging/setup.sh $(VENV) $*
