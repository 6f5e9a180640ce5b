# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of torch is the default; `make run TORCH=` takes whatever the package index offers (CUDA on Linux).
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Extras of pyproject.toml, by commas: gpu, gguf, server, dashboard, joblib, slurm
EXTRAS ?=
ARGS ?= method=lily task=metamath
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Tests of the rooms that know neither torch nor a running job: half a minute, so that they run before every commit.
FAST := tests/unit/test_architecture.py tests/unit/test_errors.py $(addprefix tests/unit/,config statistics records report)

.DEFAULT_GOAL := help
.PHONY: help install install-dev run test test-all test-gpu check format bench pocket-models server clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

install: $(VENV)/.installed  ## Make .venv and install peftsweep into it

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) '$(TORCH)')
	$(PIP) --constraint constraints.txt --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	touch $@

install-dev: $(VENV)/.installed-dev  ## Install what tests and checks need, too

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install  ## Run one job: make run ARGS="method=lora hparams.lr=3e-4"
	$(BIN)/python -m peftsweep $(ARGS)

test: install-dev  ## Run the tests, but those that are slow or need a GPU
	$(PYTEST) -m 'not slow and not gpu'

test-all: install-dev  ## Run the slow tests too, as continuous integration does
	$(PYTEST) -m 'not gpu'

test-gpu: install-dev  ## Run the tests that need CUDA, a process for each card, and print what they measured
	$(PYTEST) -n auto --dist worksteal -m gpu tests/gpu

check: install-dev  ## Lint, format, types, and the tests of config, statistics, records and report: the gate before every commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m 'not slow and not gpu' $(FAST)

format: install-dev  ## Rewrite the code in its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install-dev  ## Measure decoding, loss memory and start-up, each against a baseline in the same run
	for bench in tests/bench/bench_*.py; do $(BIN)/python $$bench || exit 1; done

pocket-models: install  ## Pre-train the embedded models anew (two hours on 2 cores, or more)
	$(BIN)/python -m peftsweep.modalities.text.pocket.pretrain
	$(BIN)/python -m peftsweep.modalities.image.pocket.pretrain
	$(BIN)/python -m peftsweep.modalities.encoder.pocket.pretrain
	$(BIN)/python -m peftsweep.modalities.vision_language.pocket.pretrain

server: install  ## Serve MLflow as MLFLOW_HOST, MLFLOW_PORT, MLFLOW_BACKEND_STORE_URI say (see docker/)
	$(BIN)/mlflow server

clean:  ## Remove what the commands above made, except outputs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
