# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo demo-emulator test lint bench mutants peer-suites clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    real jobs in a real worker, killed twice; ends with a proof (under a minute)"
	@echo "make demo-emulator   the same on the Pub/Sub and Firestore emulators"
	@echo "make test    all tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   measurements, as ratios against other brokers"
	@echo "make mutants breaks the store's promises one by one; the suite must notice each"
	@echo "make peer-suites     Celery's and Kombu's own integration suites on our transports and result backends, beside Redis"
	@echo "make clean   removes what these made"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,redis,testing,bench]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m examples.repo_insight.demo

demo-emulator: $(STAMP)
	@$(BIN)/python -m gwi_celery.testing.emulators -- $(BIN)/python -m examples.repo_insight.demo --project local

test: $(STAMP)
	$(BIN)/python -m pytest -n 4 --dist loadgroup $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --exclude '*.md' .
	$(BIN)/mypy
	$(BIN)/mypy -p examples --allow-untyped-decorators

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants

peer-suites: $(STAMP)
	$(BIN)/python -m tests.peers $(ARGS)

clean:
	rm -rf $(VENV) demo-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
