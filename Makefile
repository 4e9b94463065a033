PYTHON ?= python

.PHONY: check fix lint types test test-all docs pages

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -q -n 2

test-all:
	$(PYTHON) -m pytest -q -n 2 -m ""

fix:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs:
	LIGO_UPDATE_DOCS=1 $(PYTHON) -m pytest -q tests/laws/test_docs.py tests/recipes/test_recipe.py -k "docs or schema"

pages:
	$(PYTHON) -m sphinx -W --keep-going -b html docs out/docs
