STUDY ?= digits
RESULTS ?=
PARAMS ?=
ONLY ?=
TO = $(if $(RESULTS),--results "$(RESULTS)")

# One rule: an active environment is used when `import modules` finds this checkout there, whatever its name;
# otherwise .venv is made when it is missing, and installed anew when the lock has changed. (-I keeps the folder make
# runs in and PYTHONPATH out of it: they would find this checkout with any Python.)
FINDS_THIS = -I -c 'import modules, os, sys; real = os.path.realpath; \
    sys.exit(real(modules.__path__[0]) != real("modules") or real(sys.prefix) == real(".venv"))' 2>/dev/null && echo yes
ifneq ($(shell python $(FINDS_THIS)),)
PYTHON := python
ENV := active
else
PYTHON := .venv/bin/python
ENV := .venv/.installed
# An active environment that would be used, were its Python the first on PATH.
HIDDEN := $(if $(shell "$${VIRTUAL_ENV:-none}/bin/python" $(FINDS_THIS)),$(VIRTUAL_ENV))
HIDDEN := $(or $(HIDDEN),$(if $(shell "$${CONDA_PREFIX:-none}/bin/python" $(FINDS_THIS)),$(CONDA_PREFIX)))
ifneq ($(HIDDEN),)
ENV := hidden
endif
endif

# What a Linux (CUDA) or a macOS environment was measured to need.
SIZES = $$(if test "$$(uname)" = Darwin; then echo "0.3 GB to download, 1.1 GB of disk"; \
    else echo "3.1 GB to download, 6.2 GB of disk (torch with CUDA)"; fi)
FREE = $$(df -Pk . | awk 'NR == 2 {printf "%.0f", $$4 / 1e6}')

.PHONY: help env active hidden lock check-lock reproduce best-lr publish verify html test test-all test-faults lint benchmark benchmark-scale benchmark-reproduce lab clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 21

env: $(ENV) ## make .venv from requirements.txt, or check the active environment

active:
	@$(PYTHON) environment.py

hidden:
	@echo "error: the active environment is $(HIDDEN), but the first python on PATH is $$(command -v python || echo none): activate it again" >&2; exit 1

.venv/.installed: requirements.txt pyproject.toml
	@test -z "$$VIRTUAL_ENV$$CONDA_PREFIX" || test "$$VIRTUAL_ENV" = "$(CURDIR)/.venv" || \
	    echo "In the active environment $${VIRTUAL_ENV:-$$CONDA_PREFIX} this checkout is not installed (pip install -e '.[dev]'), so .venv is used."
	@.venv/bin/python -c '' 2>/dev/null || { \
	    for python in python3.11 python3 python3.12 python3.13 python3.14 none; do \
	        $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && break; \
	    done; \
	    test $$python != none || { echo "error: Python 3.11 to 3.14 is needed, and not found on PATH" >&2; exit 1; }; \
	    $$python -m venv --clear .venv || { rm -rf .venv; exit 1; }; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
	@echo "Installing requirements.txt into .venv. A new one takes minutes and $(SIZES); $(FREE) GB are free."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

LOCK = $(PYTHON) -m uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate \
    --custom-compile-command "make lock" pyproject.toml --output-file
lock: $(ENV) ## requirements.txt from pyproject.toml: what it pins stays where it can
	@$(LOCK) requirements.txt

# macOS 14 is the oldest that the locked torch has wheels for.
check-lock: $(ENV) ## does requirements.txt follow from pyproject.toml, and resolve wherever README says? Installs nothing
	@mkdir -p .ruff_cache && cp requirements.txt .ruff_cache/lock.txt && $(LOCK) .ruff_cache/lock.txt
	@diff requirements.txt .ruff_cache/lock.txt || { echo "error: pyproject.toml asks for another lock; run make lock" >&2; exit 1; }
	@set -e; for python in 3.11 3.14; do \
	    for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin x86_64-pc-windows-msvc; do \
	        MACOSX_DEPLOYMENT_TARGET=14.0 $(PYTHON) -m uv pip compile --quiet --only-binary :all: --python-version $$python \
	            --python-platform $$platform requirements.txt --output-file /dev/null; \
	        echo "requirements.txt resolves for Python $$python on $$platform"; \
	    done; \
	done

reproduce: $(ENV) ## run a study: make reproduce [STUDY=digits] [RESULTS=results/digits] [ONLY=03] [PARAMS="-p 03.runs 2"]
	@$(PYTHON) -m modules reproduce --study "$(STUDY)" $(TO) $(if $(ONLY),--only "$(ONLY)") $(PARAMS)

best-lr: $(ENV) ## a learning rate for your data: make best-lr [RESULTS=results/mine] [PARAMS="-p dataset images -p data_dir data/mine -p image_size 64"]
	@$(PYTHON) -m modules reproduce --study best-lr $(TO) $(PARAMS)

publish: $(ENV) ## promote complete results to results/published/: make publish [STUDY=digits] [RESULTS=...] [PARAMS="--model net.py:network"]
	@$(PYTHON) -m modules publish --study "$(STUDY)" $(TO) $(PARAMS)

verify: $(ENV) ## train the first row of complete runs again: make verify RESULTS=... [PARAMS="--rows 2 --data-dir data/mine"]
	@$(PYTHON) -m modules verify --results "$(RESULTS)" $(PARAMS)

html: $(ENV) ## documents, executed notebooks and the API as one site in site/
	@$(PYTHON) -m modules html $(PARAMS)

test: $(ENV) ## the tests but for those marked ci, which take long: the site, publishing, faults of workers, disks, clusters
	@$(PYTHON) -m pytest -m "not ci"

test-all: $(ENV) ## all tests
	@$(PYTHON) -m pytest

test-faults: $(ENV) ## processes killed, disks filled, input mangled: every fault in full, half an hour
	@CLR_FAULTS=full $(PYTHON) -m pytest -n 0 tests/faults

lint: $(ENV) ## ruff on code and notebooks
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check modules tests environment.py clr_study.py

benchmark: $(ENV) ## speed beside a conventional loop and the machine's limit, into results/benchmarks/
	@$(PYTHON) benchmarks/throughput.py

benchmark-scale: $(ENV) ## what the machinery costs from 10 to 10,000 runs, into results/benchmarks/
	@$(PYTHON) benchmarks/scale.py

benchmark-reproduce: $(ENV) ## where the seconds of a study go, into results/benchmarks/: make benchmark-reproduce [STUDY=digits]
	@$(PYTHON) benchmarks/reproduce.py --study $(STUDY)

lab: $(ENV) ## open JupyterLab at the notebooks: change one, run all of it; results go to results/lab/
	@$(PYTHON) -m jupyter lab --LabApp.default_url=/lab/tree/notebooks

clean: ## delete .venv, site/ and caches; results and data stay
	rm -rf .venv site .pytest_cache .ruff_cache .hypothesis
