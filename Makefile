# make test and make demo work on a fresh clone; both put what they need in .venv first.
PYTHON ?= python3
TORCH ?= 2.13.0
BIN := .venv/bin
OTHER := .venv-torch-$(TORCH)
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env check test test-torch demo bench clean
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# Make the folder $(1) an environment, unless it is a usable one. An interpreter alone is none:
# without python3-venv a folder without pip is left behind, and uv makes such ones.
define environment
	@$(1)/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'orch needs Python 3.11 or newer; name one: make PYTHON=python3.13 …' >&2; exit 2; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo '$(PYTHON) cannot make environments: apt install python3-venv' >&2; exit 2; }; \
	test ! -e $(1) || echo '$(1) has no usable pip: it is made anew'; \
	$(PYTHON) -m venv --clear $(1); }
endef

# --no-build-isolation: an isolated build would fetch its own, unpinned setuptools.
.venv/.ready: setup.cfg pyproject.toml constraints.txt
	$(call environment,.venv)
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation -e .
	@touch $@

.venv/.ready-to-test: .venv/.ready
	$(INSTALL) --no-build-isolation -e '.[test]'
	@touch $@

env: .venv/.ready-to-test ## put what users and tests need in .venv

check: env ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check ## everything: linters, types, tests with real processes and a real Slurm
	$(BIN)/python tests/run.py

# Another torch brings its own sympy and setuptools; all else is as pinned.
test-torch: ## kernels' and end-to-end tests with another torch: make test-torch TORCH=2.11.0
	$(call environment,$(OTHER))
	sed -E '/^(torch|setuptools|sympy)==/d' constraints.txt > $(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install -q -c $(OTHER)/constraints.txt torch==$(TORCH) "setuptools>=70.1"
	$(OTHER)/bin/python -m pip install -q -c $(OTHER)/constraints.txt torch==$(TORCH) \
		--no-build-isolation -e '.[test]'
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest tests/kernels tests/orchestrator/test_end_to_end.py

demo: .venv/.ready ## the main job on a small checkpoint: submit a grid, wait, print the table
	test -e results/models/demo/config.json || \
		$(BIN)/python -m jobs.make_checkpoint results/models/demo --format hf
	$(BIN)/orch submit --grid jobs/grids/demo.yaml --wait
	$(BIN)/orch collect --study demo --format markdown

bench: env ## print the curves that the performance claims rest on
	for file in tests/benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean: ## remove the environments and caches; results stay
	rm -rf .venv .venv-torch-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
