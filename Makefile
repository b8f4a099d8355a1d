# make search: install into .venv and search the bundled digits. make test: install, lint, type-check, test.
# make chaos: kill a hundred drivers and workers at random.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(wildcard convlogic_core/csrc/* convlogic_core/csrc/cuda/*)
CPP := $(foreach folder,convlogic_core/csrc convlogic_core/csrc/cuda tests/cuda/emulation,$(wildcard $(folder)/*.cpp $(folder)/*.cu $(folder)/*.h))

.PHONY: search test chaos lint format clean

search: $(VENV)/installed
	$(BIN)/python -m search.run --space digits_small --trials 24 --workers 2

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest

chaos: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.chaos

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build
