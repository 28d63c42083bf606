# make serve and make test are all a newcomer needs; both set up .venv first. make help lists all.
HOST ?= 127.0.0.1
PORT ?= 8000
CONFIG ?= configs/tiny.toml
PYTHON ?= python3
# Processes that share the tests out: 9 minutes on two idle cores. JOBS=0 runs them in one.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Without byte code of what nobody imports: a fifth of the size, and a third of the time.
PIP := $(BIN)/pip install --disable-pip-version-check -q --no-compile -c constraints.txt

# The build of torch is the one installed before; at first the one for the CPU, or for CUDA where
# the target needs a GPU. It is part of a stamp's name, so that another choice installs another.
INSTALLED_TORCH := $(patsubst $(VENV)/.torch-%,%,$(wildcard $(VENV)/.torch-*))
ifneq ($(filter test-gpu first-contact,$(MAKECMDGOALS)),)
TORCH ?= $(or $(filter-out cpu,$(INSTALLED_TORCH)),cuda)
else
TORCH ?= $(or $(INSTALLED_TORCH),cpu)
endif
TORCH_STAMP := $(VENV)/.torch-$(TORCH)
BASE_STAMP := $(VENV)/.base
DEV_STAMP := $(VENV)/.dev
DOCS_STAMP := $(VENV)/.docs
SBOM_STAMP := $(VENV)/.sbom
PINNED_TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help serve test check setup base format test-gpu first-contact docs reference sbom image clean

help:
	@echo 'make serve          serve $(CONFIG) on http://$(HOST):$(PORT); installs what serving needs'
	@echo 'make test           every test that needs no GPU; installs what tests and checks need'
	@echo 'make check          formatting, types, import laws, sizes of files'
	@echo 'make setup          install what tests and checks need'
	@echo 'make base           install what serving needs'
	@echo 'make format         let ruff mend and format'
	@echo 'make first-contact  ten minutes of checks and times on a GPU machine'
	@echo 'make test-gpu       the tests that need a GPU'
	@echo 'make docs           build the documentation as a site, into site/'
	@echo 'make reference      write the pages of settings, errors and commands anew from the code'
	@echo 'make sbom           list what is installed, as CycloneDX, in sbom.cdx.json'
	@echo 'make image          build the Docker image for a CPU'
	@echo 'make clean          remove $(VENV) and data'
	@echo
	@echo 'Variables: HOST, PORT, CONFIG, PYTHON, JOBS (processes of make test), and TORCH, the build of'
	@echo 'torch: cpu, cuda, or a label such as cu130; now $(TORCH). pip finds it where pip looks: a build that'
	@echo 'its index lacks comes from the index that PIP_EXTRA_INDEX_URL names.'

setup: $(DEV_STAMP)

base: $(BASE_STAMP)

serve: base
	$(BIN)/hyimage serve --config $(CONFIG) --host $(HOST) --port $(PORT)

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not gpu" -q -n $(JOBS) --dist loadfile

# On a machine with a CUDA device, and the torch build made for it: what no CPU can show.
test-gpu: setup
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m gpu -q tests/gpu

# Ten minutes on an unknown GPU machine: checks and times, and a page to send back. Resumes.
first-contact: setup
	HF_HUB_OFFLINE=1 $(BIN)/hyimage first-contact --output first-contact

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.size_budget

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Strictly: a page that is in no menu, or a link that leads nowhere, ends it.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build # --quiet would hide warnings from it
	@echo "The site is site/index.html"

reference: base
	$(BIN)/python -m cli.reference

# What the environment holds, in the versions of constraints.txt, with licences and who needs what.
# The tool has an environment of its own, so that it does not list itself.
sbom: $(SBOM_STAMP)
	$(VENV)/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --of JSON -o sbom.cdx.json $(BIN)/python
	@echo "sbom.cdx.json lists $(VENV): after make serve what serving needs, after make setup the tests' as well"

image:
	docker build -t hyimage:cpu .

clean:
	rm -rf $(VENV) data site sbom.cdx.json

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# torch first and by itself, so that nothing else decides which build of it is taken.
$(TORCH_STAMP): constraints.txt | $(BIN)/python
	@rm -f $(VENV)/.torch-* $(VENV)/torch.log
	@echo "Installing $(PINNED_TORCH), the build for $(TORCH)"
	@case "$(TORCH)" in \
	cpu) $(PIP) "$(PINNED_TORCH)+cpu" 2>$(VENV)/torch.log || { \
	  grep -q 'No matching distribution' $(VENV)/torch.log || { cat $(VENV)/torch.log; exit 1; }; \
	  echo "pip's index has no build named +cpu. Installing the one that it has, which on Linux brings"; \
	  echo "several GB for CUDA. For the small one interrupt, and name the CPU index of PyTorch's"; \
	  echo "installation page: PIP_EXTRA_INDEX_URL=URL make serve"; \
	  $(PIP) "$(PINNED_TORCH)"; } ;; \
	cuda) $(BIN)/pip uninstall -q -y torch 2>/dev/null; $(PIP) "$(PINNED_TORCH)" && \
	  $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None and "pip found torch " + torch.__version__ + ", which is not for CUDA. Name the index of a CUDA build from the installation page of PyTorch in PIP_INDEX_URL, and its label: make TORCH=cu130 ...")' ;; \
	*) $(PIP) "$(PINNED_TORCH)+$(TORCH)" ;; \
	esac
	@touch $@

$(BASE_STAMP): $(TORCH_STAMP) pyproject.toml constraints.txt
	@echo "Installing what serving needs"
	@$(PIP) -e .
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import cli.app, server.serve, server.worker.main'
	@touch $@

$(DEV_STAMP): $(BASE_STAMP)
	@echo "Installing what tests and checks need"
	@$(PIP) -e ".[dev]"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true # some are templates
	@touch $@

$(DOCS_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what builds the documentation"
	@$(PIP) "mkdocs>=1.6" "mkdocs-material>=9.6"
	@touch $@

$(SBOM_STAMP): $(BASE_STAMP)
	@echo "Installing what lists the environment"
	@$(PYTHON) -m venv $(VENV)/sbom
	@$(VENV)/sbom/bin/pip install --disable-pip-version-check -q "cyclonedx-bom>=7.5"
	@touch $@
