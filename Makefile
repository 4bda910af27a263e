# make test and make demo work on a fresh clone; both put what they need in .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: env check test demo bench clean
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# --no-build-isolation: an isolated build would fetch its own, unpinned setuptools.
.venv/.ready: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[test]'
	touch $@

env: .venv/.ready ## put the environment in .venv

check: env ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check ## everything: linters, types, tests with real processes and a real Slurm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

demo: env ## the main job on a small checkpoint: submit a grid, wait, print the table
	test -e results/models/demo/config.json || \
		$(BIN)/python -m jobs.make_checkpoint results/models/demo --format hf
	$(BIN)/orch submit --grid jobs/grids/demo.yaml --wait
	$(BIN)/orch collect --study demo --format markdown

bench: env ## print the curves that the performance claims rest on
	for file in tests/benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean: ## remove the environment and caches; results stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
