# The two commands of the README, `make demo` and `make test`, set everything up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints/cpu-py311.txt
# Two busy cores must not spin on each other, and no test may reach the network.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.PHONY: help demo docs test test-long lint format clean

help:
	@echo "make demo       install, then run InstructDiff on the embedded model and data and print the result"
	@echo "make test       install, lint, type-check and test (10 minutes on two cores with AVX-512, more without)"
	@echo "make test-long  the tests that take minutes: real data, whole pipelines"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the site of the documents, in build/site"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --quiet -c $(CONSTRAINTS) -e ".[train,report]"
	@touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --quiet -c $(CONSTRAINTS) -e ".[docs]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/instdiff pipeline --config configs/demo.yaml

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tests of a file stay in one process, which makes what they share once.
test: lint
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-long: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python -m pytest -m "slow"

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
