# Each target does its own set-up. PYTHON chooses the interpreter that .venv is made with.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: setup demo test test-all test-lowest check format docs clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/regard demo

test: setup
	$(BIN)/python $(PYTEST) -m "not slow"

test-all: setup
	$(BIN)/python $(PYTEST)

# With the lowest version of each direct dependency that pyproject.toml allows, in an environment of its own.
test-lowest:
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet uv
	build/lowest/bin/uv pip install --quiet --python build/lowest --resolution lowest-direct -e ".[dev]"
	build/lowest/bin/python $(PYTEST) -m "not slow" -W default  # old versions warn of newer ones

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation site in build/site; a broken link is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv build runs .pytest_cache .ruff_cache
