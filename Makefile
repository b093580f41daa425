# `make demo` and `make test` are the two commands that matter; each sets up all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-cluster check docs pull clean

demo: $(READY) pull
	$(BIN)/loci demo

# One process a processor, each with one thread: tiny models lose more to threads than they gain.
test: $(READY) pull
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

test-fast: $(READY)
	$(BIN)/pytest -m "not slow and not model and not gpu and not cluster"

test-cluster: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster

check: $(READY)
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m loci.cli.docs --check

docs: $(READY)
	$(BIN)/python -m loci.cli.docs

pull: $(READY)
	$(BIN)/loci pull smollm2 minilm

# The CPU build of torch first: a plain `torch` would bring gigabytes of CUDA on some machines.
$(READY): pyproject.toml setup.py $(wildcard src/loci/nn/kernels/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build src/*.egg-info
