# Two commands do everything, set-up included: `make study` and `make test`.
VENV ?= .venv
PYTHON ?= python3
CORES ?= all
CONFIG ?= config/default.yaml
BIN := $(VENV)/bin
RANKING ?= .venv-ddranking
RESULTS = results/$(shell sed -n 's/^name: *["'\'']*\([A-Za-z0-9._-]*\).*/\1/p' $(CONFIG))
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup study page restore verify test gpu rank lock clean

help: ## Show this list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Byte code is compiled here: where Python may not write it (PYTHONDONTWRITEBYTECODE), importing torch alone takes twice as
# long without it, in each of a study's steps.
setup: $(VENV)/.ready ## Create the environment (.venv) from the hashed lock file.

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; choose one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@echo "setup: creating $(VENV) (about 7 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

study: setup ## Run the study (CONFIG=config/default.yaml) to tables, figures and the HTML report.
	@snakemake --cores $(CORES) --configfile $(CONFIG)
	@$(MAKE) --no-print-directory page
	@echo "report: $(RESULTS)/report.html"

# By content, since DVC changes the times of what it tracks.
SHOWN = sha256sum $(RESULTS)/report.html $(RESULTS)/tables/* $(RESULTS)/figures/* $(RESULTS)/record/* \
  src/diver/report/captions/*
page: ## Write the HTML report of CONFIG's results, unless it shows these tables, figures, records and captions already.
	@$(SHOWN) 2>/dev/null | cmp --silent - $(RESULTS)/report.sha256 \
	  || { snakemake --configfile $(CONFIG) --report $(RESULTS)/report.html && $(SHOWN) >$(RESULTS)/report.sha256; }

# The commit that last changed dvc.lock has the code and settings that the results were made with. Their provenance is
# recorded from a clone of it, once DVC has found that nothing in it differs; then what was edited since is newer.
AS_MADE = .snakemake/as-made
CACHE = $(shell dvc cache dir)

restore: setup ## Fetch this commit's results with DVC; what was edited since they were made is made again, no more.
	@dvc pull
	@rm -rf $(AS_MADE) && git clone --quiet --shared --no-checkout . $(AS_MADE)
	@git -C $(AS_MADE) checkout --quiet $$(git log -1 --format=%H -- dvc.lock)
	@ln -s ../../results ../../.snakemake $(AS_MADE)/ && ln -s ../../../data/prepared ../../../data/prior $(AS_MADE)/data/
	@printf '[cache]\n    dir = %s\n' "$(abspath $(CACHE))" >$(AS_MADE)/.dvc/config.local
	@cd $(AS_MADE) && dvc status --quiet \
	  || { echo "restore: dvc.lock was not written by the code that it was committed with: make it so by dvc repro"; exit 1; }
	@cd $(AS_MADE) && snakemake --touch --forceall --cores 1 --quiet all \
	  --configfile config/$$(sed -n 's/^study: *//p' params.yaml).yaml >/dev/null
	@git diff --name-only -z $$(git log -1 --format=%H -- dvc.lock) | xargs -0r touch --no-create
	@rm -rf $(AS_MADE)

verify: setup ## Check DVC's cache against its digests, which DVC does not do by itself; remove what is damaged.
	@cd $(CACHE)/files/md5 && damaged=$$(find ?? -type f | sed -E 's|(..)/(.{30}).*|\1\2  &|' \
	  | LC_ALL=C md5sum --check --quiet 2>/dev/null | sed -n 's/: FAILED.*//p') \
	  && for file in $$damaged; do rm -f $$file && echo "verify: $$file was damaged and is removed"; done \
	  && if [ -n "$$damaged" ]; then echo "verify: heal it by: dvc fetch && dvc checkout --relink"; exit 1; fi

test: setup ## Lint, check types and formats, run the tests; those that take minutes each by SLOW=1.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check Snakefile rules
	@snakemake --lint
	@$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --ignore=tests/workflow
	@DIVER_SLOW=$(SLOW) $(BIN)/python -m pytest tests/workflow

gpu: setup ## On a machine with a GPU: its tests, speed and published numbers, into results/gpu (GPU_HOURS=3).
	@DC_PEER="$(DC_PEER)" MTT_PEER="$(MTT_PEER)" GLAD_PEER="$(GLAD_PEER)" GLAD_SET="$(GLAD_SET)" \
	  GPU_HOURS=$(GPU_HOURS) benchmarks/gpu.sh

$(RANKING)/.ready: requirements-ddranking.lock | $(VENV)/.ready
	@echo "rank: creating $(RANKING) with DD-Ranking, on Python 3.11 or 3.12 (about 6 GB)"
	@$(BIN)/uv venv --quiet --clear --python '>=3.11,<3.13' $(RANKING)
	@$(BIN)/uv pip install --quiet --python $(RANKING)/bin/python --require-hashes -r $<
	@touch $@

# The judge's real data are the prepared file's, or REAL=folder as DD-Ranking takes it.
PREPARED ?= data/prepared/cifar10.safetensors
RANKED = results/ranking/$(patsubst results/%,%,$(patsubst /%,%,$(basename $(SET))))

rank: ## Judge SET=file.safetensors with DD-Ranking; OPTIONS="--epochs 50 --control" and more.
	@test -f "$(SET)" || { echo "rank: no set: make rank SET=results/default/distilled/cifar10/ipc1/dm.safetensors"; exit 2; }
	@$(MAKE) --no-print-directory $(RANKING)/.ready
	@test -n "$(REAL)" -o -f $(PREPARED) || snakemake --cores $(CORES) $(PREPARED)
	@$(BIN)/diver export $(SET) --form ddranking --out $(RANKED) >/dev/null
	@MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000 \
	  $(RANKING)/bin/python src/ranking/rank_set.py $(RANKED) $(if $(REAL),--real $(REAL),--prepared $(PREPARED)) $(OPTIONS)

lock: setup ## Renew the lock files from pyproject.toml and envs/ddranking.yaml.
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra test --extra cluster --extra text \
	  pyproject.toml -o requirements.lock
	@sed -n 's/^ *- \(.*==.*\)/\1/p' envs/ddranking.yaml \
	  | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --custom-compile-command "make lock" - -o requirements-ddranking.lock

clean: ## Remove results (keeps data and the environment).
	rm -rf results .snakemake
