# Two commands matter: `make demo` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help venv demo test compat systemd faults fuzz check format docs bench clean

help:
	@echo "make demo    federated training on three sites, one daemon, four trackers"
	@echo "make test    the tests"
	@echo "make compat  frameworks, tensorboardX's tests and public scripts: real tool beside zmqtrack"
	@echo "make systemd the service in a really booted systemd: takes root, debootstrap and systemd-nspawn"
	@echo "make faults  the fault tests in their long form"
	@echo "make fuzz    the coverage-guided fuzzer (RUNS=10000000 inputs); \`make test\` replays its corpus"
	@echo "make check   ruff, formatting, mypy strict, import layers"
	@echo "make bench   cost of a logging call and end-to-end rate, beside other loggers"
	@echo "make format  let ruff format and sort"
	@echo "make docs    write docs/configuration.md, the schema and docs/compatibility.md anew"
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

# Other people's code, with the real tool and with the import changed: a table, and exit code 1 for
# what goes astray. SUITES: tensorboardx, frameworks, scripts, nvflare, flower; more is told in
# tests/compat/__init__.py.
COMPAT := .venv-compat
compat: $(COMPAT)/.installed
	PYTHONPATH=tests $(COMPAT)/bin/python -m compat $(SUITES)

$(COMPAT)/.installed: pyproject.toml setup.cfg constraints.txt
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[compat]'
	touch $@

# Makes the tree that is booted, once, in the user's cache; `make test` then boots it too.
systemd: $(STAMP)
	ZMQTRACK_SYSTEMD=1 $(BIN)/python -m pytest --numprocesses 0 -rs tests/test_systemd.py tests/test_systemd_container.py

# The long form of what `make test` runs in a short one.
faults: $(STAMP)
	ZMQTRACK_FAULT_CYCLES=200 $(BIN)/python -m pytest tests/faults tests/test_limits.py

# Of the wire, then of the daemon's control messages. New inputs stay in fuzz-out.
RUNS ?= 10000000
fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	mkdir -p fuzz-out/wire fuzz-out/control
	$(BIN)/python tests/fuzz/fuzz_wire.py wire fuzz-out/wire tests/fuzz/corpus/wire -max_len=1200 -runs=$(RUNS) -print_final_stats=1
	$(BIN)/python tests/fuzz/fuzz_wire.py control fuzz-out/control tests/fuzz/corpus/control -max_len=600 -runs=$$(($(RUNS) / 20))

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

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/names.py

clean:
	rm -rf $(VENV) $(COMPAT) compat-out demo-out bench-out fuzz-out zmqtrack-out zmqtrack-state build dist *.egg-info
