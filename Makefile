# `make demo` and `make test` start from a machine that has Python 3.11 or 3.12, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_SEGMENTS ?= 60# test segments per language that the demo scores

.PHONY: demo install test gpu lint docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m localgp.prepare corpus=mini
	$(BIN)/python -m localgp.train -m conf=row01,row05
	$(BIN)/python -m localgp.evaluate -m conf=row01,row05 evaluate.limit=$(DEMO_SEGMENTS)
	$(BIN)/python -m localgp.report

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -e '.[test,dev]'
	touch $@

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -e '.[docs]'
	touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --site-dir site

gpu: $(VENV)/.installed-dev
	$(BIN)/python scripts/gpu_check.py --out gpu_check.json

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
