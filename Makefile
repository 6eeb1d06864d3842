# `make demo` and `make test` need Python 3.11 or newer, and nothing else: each makes .venv once,
# installs the tested versions into it, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: bench demo test slow check docs format clean

demo: $(INSTALLED)
	$(BIN)/mltr demo --out runs/demo --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(if $(SHUFFLE),--shuffle $(SHUFFLE))

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(INSTALLED)
	$(BIN)/python benchmarks/network.py --rounds 5 --out runs/bench/network.json
	$(BIN)/python benchmarks/memory.py --models mltr_s --variants mltr_s --out runs/bench/memory.json
	$(BIN)/python benchmarks/growth.py --rounds 1 --out runs/bench/growth.json

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "MlTr needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { echo "Python can't make virtual environments: install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
