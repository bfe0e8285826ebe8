# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where an environment forbids it, each process of the suite would compile the package anew: half of its imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help docs docs-serve checkov demo demo-emulator test test-all test-twin test-hard test-floor test-matrix lint pyright audit constraints bench mutants peer-suites clean
.DEFAULT_GOAL := help
.SECONDARY:

help:
	@echo "make demo    real jobs in a real worker, killed twice; ends with a proof (under a minute)"
	@echo "make demo-emulator   the same on the Pub/Sub and Firestore emulators"
	@echo "make test    every promise once (four minutes on two idle cores)"
	@echo "make test-all      the slow tests too, as .ci/nightly does"
	@echo "make test-twin     the suites of workers, kills and the soak on the strict twin instead of the emulator"
	@echo "make test-hard     make test ten times: beside busy processes, in random order (an hour)"
	@echo "make test-floor    what Celery's oldest supported release decides, on that release (half a minute)"
	@echo "make test-matrix   the same on each release of Celery, and on each Python that is there"
	@echo "make audit   whether a version that may be installed has a known hole, where an advisory service answers"
	@echo "make constraints     writes constraints.txt anew, with the newest versions"
	@echo "make lint    ruff, mypy, and which module may import which"
	@echo "make bench   measurements, as ratios against other brokers"
	@echo "make mutants breaks promises one by one; tests must notice each (ARGS=--help)"
	@echo "make peer-suites     Celery's and Kombu's own integration suites on our transports and result backends, beside Redis"
	@echo "make docs    builds the documentation's site into build/site; docs-serve shows it while you write"
	@echo "make pyright checks the public API's types as pyright sees them; make lint does with mypy"
	@echo "make checkov checks infra/terraform against checkov's rules"
	@echo "make clean   removes what these made"

# The versions that the tests were last seen to pass with (not all are for Python 3.10); empty: the newest there are.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info >= (3, 11) else "")')
EXTRAS := .[dev,redis,testing,bench]

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) --editable '$(EXTRAS)'
	@$(BIN)/python -m compileall -q gwi_celery # or each of the first processes would compile it
	@touch $@

# Names and versions only, so that any index can serve them.
constraints:
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check --editable '$(EXTRAS)'
	{ echo "# What make test was last seen to pass with; made by make constraints, with $$($(PYTHON) -V)."; \
	  .venv-constraints/bin/python -m pip list --format=freeze | grep -Ev '^(pip|setuptools|wheel|gwi-celery)=='; } > constraints.txt
	rm -rf .venv-constraints

# Its wheel brings its own node: 60 MB that only this needs.
pyright: $(STAMP)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check basedpyright
	.venv-audit/bin/basedpyright --pythonpath $(BIN)/python

audit: $(STAMP)
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python .ci/audit.py $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

demo: $(STAMP)
	@$(BIN)/python -m examples.repo_insight.demo

demo-emulator: $(STAMP)
	@$(BIN)/python -m gwi_celery.testing.emulators -- $(BIN)/python -m examples.repo_insight.demo --project local

PYTEST := $(BIN)/python -m pytest -n 7 --dist loadgroup

test: $(STAMP)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(STAMP)
	$(PYTEST) $(ARGS)

test-twin: $(STAMP)
	$(BIN)/python -m tests.twins $(ARGS)

test-hard: $(STAMP)
	$(BIN)/python -m tests.hard $(ARGS)

# Tests that stand or fall with Celery's own code: tasks, backends, workers, canvas.
RELEASE_TESTS := tests/unit/test_config.py tests/unit/test_versions.py tests/unit/reliability/test_task.py tests/unit/reliability/test_call.py \
	tests/unit/worker/test_consumer.py tests/unit/transport/test_base.py tests/unit/test_tracebacks.py \
	tests/contract/test_backend.py tests/acceptance/test_worker.py tests/acceptance/test_canvas.py \
	tests/ends/test_ends.py

# Releases as "celery kombu"; the first is the floor.
FLOOR := 5.4.0-5.4.0
RELEASES := $(FLOOR) 5.5.3-5.5.4 5.6.3-5.6.2 5.7.0-5.7.0
PYTHONS ?= python3.10 python3.11 python3.12 python3.13 $(wildcard $(HOME)/.pyenv/versions/3.1[0-3].*/bin/python)

RELEASE_MARKS := not emulator

# What these tests need beside the package, which is much less than all of dev.
RELEASE_NEEDS := '.[http,redis,testing]' cryptography gevent httpx hypothesis psutil pydantic pytest-timeout pytest-xdist

# A virtualenv with a release of Celery and Kombu: make .venv-celery-5.4.0-5.4.0/.installed
.venv-celery-%/.installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable $(RELEASE_NEEDS) \
		'celery==$(firstword $(subst -, ,$*))' 'kombu==$(lastword $(subst -, ,$*))'
	@touch $@

test-release-%: .venv-celery-%/.installed
	.venv-celery-$*/bin/python -m pytest -q -n 2 --timeout 300 -m "$(RELEASE_MARKS)" $(RELEASE_TESTS) $(ARGS)

test-floor: RELEASE_MARKS := not emulator and not slow
test-floor: test-release-$(FLOOR)

test-matrix: $(RELEASES:%=test-release-%)
	@done=; for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		case " $$done " in *" $$version "*) continue;; esac; done="$$done $$version"; \
		$(MAKE) CONSTRAINTS= PYTHON=$$python VENV=.venv-python$$version .venv-python$$version/.installed && \
		.venv-python$$version/bin/python -m pytest -q -n 2 -m "not emulator" $(RELEASE_TESTS) $(ARGS) || exit 1; \
	done; echo "tested with Python$$done"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/mypy -p examples --allow-untyped-decorators

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants $(ARGS)

peer-suites: $(STAMP)
	$(BIN)/python -m tests.peers $(ARGS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# Checkov needs other releases of much that we need: it has an environment of its own.
.venv-checkov/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check checkov
	@touch $@

checkov: .venv-checkov/.installed
	$(<D)/bin/checkov --directory infra/terraform --framework terraform --compact --quiet --skip-download

docs-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

clean:
	rm -rf $(VENV) .venv-audit .venv-celery-* .venv-python* .venv-checkov demo-output build dist .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
