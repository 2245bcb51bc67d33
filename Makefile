# make demo | check | test | cover | lint | audit | lock | bench | docs | format | clean.  Each makes what
# it needs, once; check is the quick part of test.
#
#   make test ARGS='tests/crypto -k aead'      ARGS go to pytest
#   make demo ARGS='--master keyring:'         ARGS go to `apex-creds demo`
#   make bench ARGS='--json'                   ARGS go to benchmarks/invoke.py
#   PYTHON=/path/to/python make test           another interpreter (with VENV=.venv-other)

VENV ?= .venv
BENCH_VENV ?= .venv-bench
ARGS ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo check test cover lint audit lock bench docs format clean core dev

help:
	@sed -n '1,7s/^# \{0,1\}//p' Makefile

core:
	@scripts/bootstrap.sh $(VENV) core

dev:
	@scripts/bootstrap.sh $(VENV) dev

# What needs no Debian package, as `make test` does, and little time.
check: export PACKAGES := no
check: lint
	@$(BIN)/python -m pytest -n auto --dist worksteal -q --hypothesis-profile=brief \
		-m 'not slow and not faults and not e2e' $(ARGS)

demo: core
	@$(BIN)/apex-creds demo $(ARGS)

test: dev
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Branches that the tests take, of what runs in the tests' own processes; a floor for four packages.
cover: dev
	@$(BIN)/python -m pytest -n auto --dist worksteal -q --hypothesis-profile=brief \
		-m 'not slow and not faults and not e2e' --cov --cov-report= $(ARGS)
	@$(BIN)/coverage report
	@for package in crypto keys documents policy; do \
		$(BIN)/coverage report --include="apex_creds/$$package/*" --fail-under=90 --format=total \
			| sed "s/^/$$package: /" || exit 1; done

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/program.py
	@$(BIN)/pyright --pythonpath $(BIN)/python tests/typing/program.py
	$(BIN)/lint-imports --no-logo

# What is installed against the lock and its own records; needs no network.
audit: dev
	@$(BIN)/python scripts/audit.py

# The newest versions that pyproject.toml allows, into requirements/: ARGS=--upgrade.
lock: dev
	@scripts/lock.sh $(ARGS)

# The peers pin versions of their own, so they never share an environment with the tests.
bench:
	@scripts/bootstrap.sh $(BENCH_VENV) bench
	@$(BENCH_VENV)/bin/python -m benchmarks.invoke $(ARGS)

# The site of docs/, in site/; any warning is an error.
docs: dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "made site/index.html"

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist site
