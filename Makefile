STUDY ?= digits
RESULTS ?= results/$(basename $(notdir $(STUDY)))
PARAMS ?=

# Inside an activated conda environment `clr` its Python is used; otherwise .venv is made when it is missing
# and installed anew when the lock has changed.
ifeq ($(CONDA_DEFAULT_ENV),clr)
PYTHON := python
ENV :=
else
PYTHON := .venv/bin/python
ENV := .venv/.installed
endif

.PHONY: help env reproduce best-lr publish verify html test test-faults lint benchmark benchmark-scale benchmark-precision lab clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 21

env: $(ENV) ## make .venv from requirements.txt

.venv/.installed: requirements.txt pyproject.toml
	@echo "Installing requirements.txt into .venv; this takes a few minutes the first time."
	@$$(command -v python3.11 || command -v python3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed")'
	@test -x .venv/bin/python || $$(command -v python3.11 || command -v python3) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

reproduce: $(ENV) ## run a study: make reproduce [STUDY=digits] [RESULTS=results/digits] [PARAMS="-p runs 2"]
	@$(PYTHON) -m modules reproduce --study $(STUDY) --results $(RESULTS) $(PARAMS)

best-lr: RESULTS = results/best-lr
best-lr: $(ENV) ## a learning rate for your data: make best-lr [RESULTS=results/mine] [PARAMS="-p dataset mnist -p cycle True"]
	@$(PYTHON) -m modules reproduce --study best-lr --results $(RESULTS) $(PARAMS)

publish: $(ENV) ## promote complete results to results/published/: make publish [STUDY=digits] [RESULTS=...]
	@$(PYTHON) -m modules publish --study $(STUDY) --results $(RESULTS)

verify: $(ENV) ## train the first row of complete runs again: make verify RESULTS=... [PARAMS="--rows 2 --data-dir data/mine"]
	@$(PYTHON) -m modules verify --results $(RESULTS) $(PARAMS)

html: $(ENV) ## executed notebooks as web pages in site/
	@$(PYTHON) -m modules html

test: $(ENV) ## all tests
	@$(PYTHON) -m pytest

test-faults: $(ENV) ## processes killed, disks filled, input mangled: every fault in full, half an hour
	@CLR_FAULTS=full $(PYTHON) -m pytest -n 0 tests/faults

lint: $(ENV) ## ruff on code and notebooks
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check modules tests

benchmark: $(ENV) ## speed beside a conventional loop and the machine's limit, into results/benchmarks/
	@$(PYTHON) benchmarks/throughput.py

benchmark-scale: $(ENV) ## what the machinery costs from 10 to 10,000 runs, into results/benchmarks/
	@$(PYTHON) benchmarks/scale.py

benchmark-precision: $(ENV) ## is bfloat16 safe? CLR again in it: make benchmark-precision RESULTS=results/cifar10
	@$(PYTHON) benchmarks/precision.py --results $(RESULTS) $(PARAMS)

lab: $(ENV) ## open JupyterLab
	@$(PYTHON) -m jupyter lab notebooks

clean: ## delete .venv, site/ and caches; results and data stay
	rm -rf .venv site .pytest_cache .ruff_cache .hypothesis
