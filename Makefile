# Two commands matter: `make demo` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help venv demo test faults check format bench clean

help:
	@echo "make demo    federated training on three sites, one daemon, four trackers"
	@echo "make test    the tests"
	@echo "make faults  the fault tests in their long form"
	@echo "make check   ruff, formatting, mypy strict, import layers"
	@echo "make bench   cost of a logging call and end-to-end rate, beside other loggers"
	@echo "make format  let ruff format and sort"
	@echo "make clean   remove what the commands above made"

venv: $(STAMP)

$(STAMP): pyproject.toml setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m examples.demo

test: $(STAMP)
	$(BIN)/python -m pytest

# The long form of what `make test` runs in a short one.
faults: $(STAMP)
	ZMQTRACK_FAULT_CYCLES=200 $(BIN)/python -m pytest tests/faults

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-out bench-out zmqtrack-out zmqtrack-state build dist *.egg-info
