# On a fresh machine with Python >= 3.11: `make demo` shows the project, `make test` checks it.
PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := constraints.txt

.PHONY: demo test lint format clean install embedded-model

demo: .venv/installed
	$(BIN)/meqsum train experiment=demo

# One thread a process: two processes with two threads each crawl on two cores.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile \
	  --cov --cov-report=term:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rebuilds meqsum_lightning/assets from embedded/: about an hour on one core.
embedded-model: .venv/installed-dev
	$(BIN)/python -m embedded.build --output meqsum_lightning/assets

install: .venv/installed

# The pinned torch comes first: a looser requirement would fetch CUDA libraries of several GB.
.venv/installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check $$(grep '^torch==' $(CONSTRAINTS))
	$(BIN)/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
