# Everything a fresh machine needs: Python 3.11 or newer, make, and a network for the first installation.

PYTHON ?= python3
VENV ?= .venv
# Test processes; each has one torch thread, so WORKERS is also the number of cores that the tests use.
WORKERS ?= 2
NODE_PACKAGES := node-llama-cpp@3.21.1 @node-llama-cpp/linux-x64@3.21.1 @huggingface/transformers@4.3.2 \
	openai@7.59.0 axe-core@4.14.1
# transformers.js runs in a browser here: a small package stands for onnxruntime's 290 MB for node.
NODE_OVERRIDES := {"overrides": {"onnxruntime-node": "npm:onnxruntime-common@1.24.3"}}

# On Linux without an NVIDIA GPU: torch for CPUs, 0.2 GB; PyPI's brings almost 3 GB of CUDA. Where this index cannot be
# reached, pip warns and takes PyPI's. If only another machine has the GPU, as in a cluster: make install TORCH_INDEX=
GPU := $(wildcard /dev/nvidiactl)$(shell command -v nvidia-smi 2> /dev/null)
TORCH_INDEX ?= $(if $(GPU),,$(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A file's tests stay in one process, so that what they share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format docs notebooks clean

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## Make .venv with minigpt in it (the other targets do this themselves)

demo: $(VENV)/installed  ## Train a small GPT on generated stories for 72 seconds, then write some
	$(BIN)/minigpt demo

test: lint  ## Lint, then the default tests
	$(PYTEST)

test-all: test $(VENV)/installed-tools $(if $(shell command -v npm),$(VENV)/installed-node)  ## The same, then the proofs that take long
	$(PYTEST) -m slow --no-loadscope-reorder

lint: $(VENV)/installed-test  ## Style (ruff) and types (basedpyright)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/installed-test  ## Rewrite the code in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/installed-test  ## Build the documentation site into build/site; a warning is an error
	$(BIN)/python docs/build.py
	$(BIN)/zensical build --strict --clean

notebooks: $(VENV)/installed-test  ## Execute notebooks/*.py, and write each as .ipynb with its outputs
	$(BIN)/python notebooks/build.py

clean:  ## Remove .venv and every cache; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "minigpt needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "no venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }

# A stamp is written when its installation has succeeded, and is stale when what is asked for changes.
# torch comes first and alone, so that the build that pip finds for this machine is the one that stays.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install torch -c constraints.txt $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX))
	$(PIP) install -e ".[plot,serve]" -c constraints.txt
	@touch $@

# Tools of others that read what we export, for slow tests; without npm those are skipped.
$(VENV)/installed-node: Makefile | $(BIN)/python
	mkdir -p $(VENV)/node && echo '$(NODE_OVERRIDES)' > $(VENV)/node/package.json
	npm install --prefix $(VENV)/node --ignore-scripts --omit optional --no-audit --no-fund --loglevel error $(NODE_PACKAGES) \
		&& touch $@ || echo "npm could not install $(NODE_PACKAGES): the tests that need it are skipped"

# 400 MB, for slow tests too.
$(VENV)/installed-tools: $(VENV)/installed-test
	$(PIP) install -e ".[lm-eval]" "lm_eval[api]" -c constraints.txt && $(PIP) install "mlx-lm[cpu]" -c constraints.txt \
		&& touch $@ || echo "pip could not install lm-eval or mlx-lm: the tests that need it are skipped"

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install -e ".[plot,serve,test,docs]" -c constraints.txt
	@touch $@
