# Two commands do everything, set-up included: `make study` and `make test`.
VENV ?= .venv
PYTHON ?= python3
CORES ?= all
CONFIG ?= config/default.yaml
BIN := $(VENV)/bin
RESULTS = results/$(shell sed -n 's/^name: *//p' $(CONFIG))
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup study test lock clean

help: ## Show this list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## Create the environment (.venv) from the hashed lock file.

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; choose one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@echo "setup: creating $(VENV) (about 6 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

study: setup ## Run the study (CONFIG=config/default.yaml) to tables, figures and the HTML report.
	@snakemake --cores $(CORES) --configfile $(CONFIG)
	@test $(RESULTS)/report.html -nt $(RESULTS)/metrics.json -a $(RESULTS)/report.html -nt $(RESULTS)/figures/gallery.png \
	  || snakemake --configfile $(CONFIG) --report $(RESULTS)/report.html
	@echo "report: $(RESULTS)/report.html"

test: setup ## Lint, check types and formats, run all tests.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check Snakefile rules
	@snakemake --lint
	@$(BIN)/python -m pytest

lock: setup ## Renew requirements.lock from pyproject.toml.
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra test pyproject.toml -o requirements.lock

clean: ## Remove results (keeps data and the environment).
	rm -rf results .snakemake
