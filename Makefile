# Everything that a developer of this project runs. "make" alone lists it.

PYTHON ?= python3
PORT ?= 8000
CELERY_BROKER_URL ?=
DATABASE_URL ?=
SAVE ?=

# For development: .test is newer than pyproject.toml while the packages of the tests are installed,
# .all while all are.
VENV := .venv
BIN := $(VENV)/bin
# For the example project alone.
EXAMPLE := .venv-example
EXAMPLE_GROUPS := --group example \
	$(if $(DATABASE_URL),--group databases) $(if $(CELERY_BROKER_URL),--group example-celery)
EXAMPLE_STAMP := $(EXAMPLE)/.example$(if $(DATABASE_URL),-databases)$(if $(CELERY_BROKER_URL),-celery)

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit( \
	"Python 3.11 or newer is needed, and this is %d.%d. Name another one, for example: " \
	"make $@ PYTHON=python3.13" % sys.version_info[:2])'

# pip older than 25.1 does not know dependency groups.
UPGRADE_PIP := -m pip install --quiet --upgrade 'pip>=25.1'

# Two processes for two cores; a test class or module stays in one.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadscope

.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo 'make demo      cancel 100 runs over HTTP, then running code; check and show the results'
	@echo 'make demo-celery  the same with Celery (CELERY_BROKER_URL=redis://127.0.0.1:6379/0)'
	@echo 'make serve     serve the example: admin, Swagger UI, seeded runs (PORT=8000)'
	@echo 'make test      run the tests that need no broker and no browser'
	@echo 'make test-all  run all tests, with Redis, RabbitMQ and Chromium'
	@echo 'make install   create .venv with all that developers need (PYTHON=python3)'
	@echo 'make lint      check style, types and the order of imports'
	@echo 'make bench     measure what it costs; SAVE=--save writes the figures into the documentation'
	@echo 'make messages  update the translations from the sources'
	@echo 'make screenshots  take the pictures in the documentation (needs Chromium)'
	@echo 'make diagrams  draw the diagrams of the documentation'
	@echo 'make docs      build the documentation in docs/_build/html'
	@echo 'make clean     remove all that was made here, .venv included'

# Each installs what it needs

$(EXAMPLE)/bin/python $(BIN)/python:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)
	$@ $(UPGRADE_PIP)

$(EXAMPLE_STAMP): pyproject.toml | $(EXAMPLE)/bin/python
	$(EXAMPLE)/bin/python -m pip install --quiet --editable . $(EXAMPLE_GROUPS)
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable . --group test
	@# The published Python client of the contract, which the tests run unmodified. They bypass
	@# the package's __init__, and then it needs only httpx and pydantic. Its other pins clash
	@# with the linters.
	$(BIN)/python -m pip install --quiet --no-deps skyvern==1.0.56
	@touch $@

$(VENV)/.all: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@$(MAKE) --no-print-directory axe
	@touch $@

# Checks pages for accessibility. Without npm, the tests that need it are left out, and say so.
.PHONY: axe
axe:
	@if command -v npm >/dev/null; then \
		npm install --prefix $(VENV)/axe --no-save --no-audit --no-fund --silent axe-core@4.14; fi

.PHONY: install
install: $(VENV)/.all

.PHONY: demo
demo: $(EXAMPLE_STAMP)
	@PYTHONPATH=example_project $(EXAMPLE)/bin/python -m demo

# With a queue of its own, and a worker that it starts and stops.
.PHONY: demo-celery
demo-celery: CELERY_BROKER_URL := $(or $(CELERY_BROKER_URL),redis://127.0.0.1:6379/0)
demo-celery:
	@$(MAKE) --no-print-directory demo CELERY_BROKER_URL=$(CELERY_BROKER_URL)

.PHONY: serve
serve: $(EXAMPLE_STAMP)
	@$(EXAMPLE)/bin/python example_project/manage.py serve $(PORT)

.PHONY: test
test: $(VENV)/.test
	$(BIN)/python -m pytest $(PARALLEL) -m 'not broker and not browser'

.PHONY: test-all
test-all: $(VENV)/.all
	$(BIN)/python -m pytest

.PHONY: lint
lint: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# SAVE=--save writes the figures to docs/figures, and the documentation from them.
.PHONY: bench
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.calls $(SAVE)
	$(BIN)/python -m benchmarks.validation
	$(BIN)/python -m benchmarks.cancelling $(SAVE)
	$(BIN)/python -m benchmarks.endpoint $(SAVE)
	$(BIN)/python -m benchmarks.bulk --runs 100000 $(SAVE)
	$(BIN)/python -m benchmarks.lists --runs 100000 $(SAVE)
	$(BIN)/python -m benchmarks.delivery
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.delivery_workers $(SAVE)
	$(BIN)/python -m benchmarks.clients $(SAVE)
	$(BIN)/python -m benchmarks.table_size $(SAVE)
	$(BIN)/python -m benchmarks.tree_shape $(SAVE)
	$(BIN)/python -m benchmarks.lifecycle $(SAVE)
	$(BIN)/python -m benchmarks.polling $(SAVE)
	$(BIN)/python -m benchmarks.beside_dbos $(SAVE)
	$(BIN)/python -m benchmarks.report

.PHONY: messages
messages: $(VENV)/.test
	@$(BIN)/python -m tools.messages

.PHONY: screenshots
screenshots: $(VENV)/.all
	$(BIN)/python -m tools.screenshots

.PHONY: diagrams
diagrams: $(VENV)/.test
	$(BIN)/python -m tools.diagrams

.PHONY: docs
docs: $(VENV)/.all
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

.PHONY: clean
clean:
	rm -rf $(VENV) $(EXAMPLE) .venv-dbos .nox build dist docs/_build htmlcov .coverage .coverage.* *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f example_project/db.sqlite3 example_project/db.sqlite3-*
	find benchmarks django_run_cancel docs example_project tests tools \
		-name __pycache__ -prune -exec rm -rf {} +
