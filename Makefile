# Each target does all of its own set-up in a virtual environment; PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint exhaustive bench clean

# A stamp per set of extras: set-up runs once, and again when pyproject.toml or the pins change.
$(VENV)/stamp-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	touch $@

demo: $(VENV)/stamp-demo
	$(BIN)/fqtsim demo

test: $(VENV)/stamp-test
	$(BIN)/python -m pytest -n auto -m "not exhaustive"

lint: $(VENV)/stamp-test $(VENV)/stamp-lint
	$(BIN)/ruff check fqtsim tests examples benchmarks
	$(BIN)/mypy

exhaustive: $(VENV)/stamp-test
	$(BIN)/python -m pytest -m exhaustive --timeout 7200 -s

bench: $(VENV)/stamp-bench
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/cpu_roofline.py

clean:
	rm -rf $(VENV) build dist
