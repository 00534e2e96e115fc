# keyhaul: one target per thing a person wants to do; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SEEDS  ?= 500
MINUTES ?= 5

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types imports unit e2e sim soak chaos fuzz bench docs lock clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make the virtual environment from the lock file

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: install  ## 56 keys between eight nodes in two regions, checked bit by bit
	$(BIN)/keyhaul demo

lock:  ## renew requirements.lock (needs pip-tools)
	pip-compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-annotate --no-header --strip-extras --extra dev -o requirements.lock pyproject.toml

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
