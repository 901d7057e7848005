# On a fresh machine with Python >= 3.11: `make demo` shows the project, `make test` checks it.
PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS := constraints.txt

.PHONY: demo test lint format clean install embedded-model

demo: .venv/installed
	$(BIN)/meqsum train experiment=demo

test: .venv/installed-dev
	$(BIN)/python -m pytest --cov --cov-report= $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine -q --append 2>/dev/null || true
	$(BIN)/python -m coverage report --fail-under=90 --skip-covered

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
