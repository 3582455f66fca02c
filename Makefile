# One way to run anything. Needs Python 3.11 or later and make; everything else goes into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
DEMO_ARGS ?=
CHAOS_ARGS ?=
BENCH ?=
BENCH_ARGS ?=
NOX_ARGS ?=

# Python shows what it otherwise hides; but its own allocator is as good as the one that looks after extensions in C.
STRICT := PYTHONDEVMODE=1 PYTHONMALLOC=pymalloc

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test browser demo docs chaos controls exhaustive bench lint format coverage matrix clean

help: ## List the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

test: $(VENV)/.installed-test ## Run the tests (PYTEST_ARGS="-k codec" and so on)
	$(STRICT) $(BIN)/python -m pytest $(PYTEST_ARGS)

browser: $(VENV)/.installed-browser ## Run the tests of the admin's pages in Chromium (CHROMIUM=/usr/bin/chromium); pictures in build/screenshots
	$(STRICT) $(BIN)/python -m pytest -m browser --numprocesses=0 tests/browser $(PYTEST_ARGS)

demo: $(VENV)/.installed-example ## Run the example, and kill its worker in the middle (DEMO_ARGS, DATABASE_URL, BROKER_URL)
	$(BIN)/python example/demo.py $(DEMO_ARGS)

docs: $(VENV)/.installed-docs ## Build the documentation into build/docs; a warning, such as a link that leads nowhere, is an error
	$(BIN)/sphinx-build -W --keep-going -n --quiet docs build/docs

chaos: $(VENV)/.installed-example $(if $(SYSTEM),$(VENV)-peers/.installed) ## Torment real processes, and count what is lost (CELL, EVENTS, SEED, LEASE, SYSTEM="ours outbox events")
	$(BIN)/python -m chaos $(foreach cell,$(CELL),--cell $(cell)) $(foreach system,$(SYSTEM),--system $(system)) \
		$(if $(EVENTS),--events $(EVENTS)) $(if $(SEED),--seed $(SEED)) $(if $(LEASE),--lease $(LEASE)) $(CHAOS_ARGS)

controls: $(VENV)/.installed-test ## Take safeguards out of the library, one by one, and see that the chaos rig and the schedules find it
	$(STRICT) $(BIN)/python -m pytest -m "" --numprocesses=0 chaos/test_controls.py tests/integration/test_schedules.py::test_control_elsewhere $(PYTEST_ARGS)

exhaustive: $(VENV)/.installed-test ## Run the tests that take long and say little more than their neighbours
	$(STRICT) $(BIN)/python -m pytest -m exhaustive $(PYTEST_ARGS)

bench: $(VENV)/.installed-example $(VENV)-peers/.installed ## Measure what the library costs, beside the limit and beside others (BENCH="send relay", BENCH_ARGS)
	$(BIN)/python -m benchmarks $(BENCH) $(BENCH_ARGS)

lint: $(VENV)/.installed-lint ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src chaos/*.py benchmarks/*.py $(wildcard typing_tests)

format: $(VENV)/.installed-lint ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.installed-test ## Run the unit tests, which must reach every line and every branch
	$(STRICT) $(BIN)/python -m pytest tests/unit --cov --cov-report=term-missing $(PYTEST_ARGS)

matrix: $(VENV)/.installed-dev ## Run the tests on every supported Python and Django that is found (NOX_ARGS)
	$(BIN)/nox $(NOX_ARGS)

clean: ## Remove everything that can be made again
	rm -rf $(VENV) $(VENV)-peers chaos/results .nox .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is %s. Try: make PYTHON=python3.13" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# What others have built for the same end, in an environment of its own.
$(VENV)-peers/.installed: Makefile
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet "django-celery-outbox==0.4.3" "django-domain-events[celery]==0.14.1" \
		"django-jaiminho==2.2.1" \
		"psycopg[binary]" pymysql "kombu[redis]"
	@touch $@

# One stamp per extra: what is installed is installed again only after pyproject.toml has changed.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@
