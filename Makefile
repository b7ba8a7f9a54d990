# Everything that a developer of this project runs. "make" alone lists it.

PYTHON ?= python3
PORT ?= 8000

VENV := .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml while the environment is as it should be.
STAMP := $(VENV)/.installed

MIN_PYTHON := import sys; sys.version_info < (3, 11) and sys.exit( \
	"Python 3.11 or newer is needed, and this is %d.%d. Name another one, for example: " \
	"make install PYTHON=python3.13" % sys.version_info[:2])

.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo 'make install   create .venv with all that the other targets need (PYTHON=python3)'
	@echo 'make demo      cancel 100 runs over HTTP, then real work; show and check what came of it'
	@echo 'make demo-celery  the same with Celery (CELERY_BROKER_URL=redis://127.0.0.1:6379/0)'
	@echo 'make serve     serve the example: admin, Swagger UI, seeded runs (PORT=8000)'
	@echo 'make test      run the tests'
	@echo 'make bench     measure how long cancelling takes, and asking for it'
	@echo 'make messages  bring the translations up to date with the sources'
	@echo 'make screenshots  take the pictures in the documentation (needs Chromium)'
	@echo 'make docs      build the documentation in docs/_build/html'
	@echo 'make clean     remove all that was made here, .venv included'

.PHONY: install
install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c '$(MIN_PYTHON)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Older ones do not know dependency groups.
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@# The published Python client of the contract, which the tests run unmodified. They bypass
	@# the package's __init__, and then it needs only httpx and pydantic. Its other pins clash
	@# with the linters.
	$(BIN)/python -m pip install --quiet --no-deps skyvern==1.0.56
	@# Checks pages for accessibility. Without npm, the tests that need it are left out, and say so.
	@if command -v npm >/dev/null; then \
		npm install --prefix $(VENV)/axe --no-save --no-audit --no-fund --silent axe-core@4.14; fi
	@touch $@

.PHONY: demo
demo: $(STAMP)
	@PYTHONPATH=example_project $(BIN)/python -m demo

# With a queue of its own, and a worker that it starts and stops.
.PHONY: demo-celery
demo-celery: export CELERY_BROKER_URL ?= redis://127.0.0.1:6379/0
demo-celery: demo

.PHONY: serve
serve: $(STAMP)
	@$(BIN)/python example_project/manage.py serve $(PORT)

.PHONY: test
test: $(STAMP)
	$(BIN)/python -m pytest

.PHONY: bench
bench: $(STAMP)
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_checkpoint

.PHONY: messages
messages: $(STAMP)
	@$(BIN)/python -m tests.messages

.PHONY: screenshots
screenshots: $(STAMP)
	$(BIN)/python -m tests.screenshots

.PHONY: docs
docs: $(STAMP)
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

.PHONY: clean
clean:
	rm -rf $(VENV) build dist docs/_build htmlcov .coverage .coverage.* *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .tox
	rm -f example_project/db.sqlite3 example_project/db.sqlite3-*
	find django_run_cancel example_project tests docs -name __pycache__ -prune -exec rm -rf {} +
