# make serve and make test are all a newcomer needs; both set up .venv first.
HOST ?= 127.0.0.1
PORT ?= 8000
CONFIG ?= configs/tiny.toml
PYTHON ?= python3
# Processes that share the tests out: 9 minutes on two idle cores. JOBS=0 runs them in one.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup serve test test-gpu first-contact check format image clean

setup: $(STAMP)

serve: setup
	$(BIN)/hyimage serve --config $(CONFIG) --host $(HOST) --port $(PORT)

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not gpu" -q -n $(JOBS) --dist loadfile

# On a machine with a CUDA device, and the torch build made for it: what no CPU can show.
test-gpu: setup
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m gpu -q tests/gpu

# Ten minutes on an unknown GPU machine: checks and times, and a page to send back. Resumes.
first-contact: setup
	HF_HUB_OFFLINE=1 $(BIN)/hyimage first-contact --output first-contact

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.size_budget

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

image:
	docker build -t hyimage .

clean:
	rm -rf $(VENV) data

# torch first and by itself, so that nothing else decides which build of it is taken.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	touch $@
