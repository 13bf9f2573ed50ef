SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The Python, 3.11 or newer, that .venv is made with.
PYTHON ?= python3
# Further arguments to pytest, for example PYTEST_ARGS='-m slow'.
PYTEST_ARGS ?=
# What make test-fast tests: the library, without data, searches and spaces.
FAST_TESTS ?= tests/figures tests/fisher tests/plasticity tests/test_*.py
# Of make gpu: what it tests, what it times (by default all), and what it searches for an hour.
GPU_TESTS ?= tests/fisher tests/plasticity tests/search
GPU_TIMES ?=
GPU_SEARCH ?= --space nas_bench_201 --preset paper
GPU_TIME ?= 3600
# Of make soak: how often each script is killed, and where its times come from.
KILLS ?= 10
SEED ?= 0

BIN := .venv/bin
STAMP := .venv/.stamp
PEERS_STAMP := .venv-peers/.stamp

define check_python
version=$$($(PYTHON) -c 'import sys; print(*sys.version_info[:3], sep=".")') \
  || { echo "error: $(PYTHON) does not run; name one with make PYTHON=python3.11" >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "error: wpl_jax needs Python 3.11 or newer, but $(PYTHON) is $$version;" \
            "name another with make PYTHON=python3.11" >&2; exit 1; }
endef

.PHONY: help
help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

.PHONY: demo
demo: $(STAMP)  ## watch one model ruin another through shared weights, and WPL prevent it; a minute
	@echo 'Model A learns to read digits. Then model B trains the layers that they share, once'
	@echo 'plainly and once with WPL, which holds what A needs. Three seeds, 5,000 images.'
	@$(BIN)/python -m experiments.two_models --preset demo

.PHONY: experiment
experiment: $(STAMP)  ## all of that experiment on 5,000 images: immature A, rivals, strengths; minutes
	$(BIN)/python -m experiments.two_models

.PHONY: test
test: lint  ## check style and types, then run the tests and the examples in docstrings
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

.PHONY: test-fast
test-fast: $(STAMP)  ## one case of each test of Fisher, plasticity and what is beside them; 90 seconds
	$(BIN)/python -m pytest -n 2 --dist worksteal --one-case $(PYTEST_ARGS) $(FAST_TESTS)

.PHONY: soak
soak: $(STAMP)  ## kill scripts at random times, KILLS of each, and compare what they leave; minutes
	$(BIN)/python tests/soak.py --kills $(KILLS) --seed $(SEED)

.PHONY: lint
lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: format
format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: requirements
requirements:  ## resolve requirements.txt anew from setup.cfg
	@$(check_python); \
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/pip" install --quiet --editable '.[experiments,test,docs]'; \
	"$$fresh/bin/pip" freeze --exclude wpl_jax > "$$fresh/pins"; \
	{ echo '# Every package that make installs, for a CPU, as setup.cfg resolves on'; \
	  echo "# $$(uname -s) with Python $$version: the base, experiments, test and docs requirements."; \
	  echo '# Written by: make requirements'; \
	  cat "$$fresh/pins"; } > requirements.txt

$(STAMP): requirements.txt setup.cfg pyproject.toml
	@$(check_python)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $(STAMP)

.PHONY: docs
docs: $(STAMP)  ## run the notebooks, build the documentation in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo 'Written to docs/_build/html/index.html'

.PHONY: linkcheck
linkcheck: $(STAMP)  ## try the documentation's links to other sites
	$(BIN)/sphinx-build --builder linkcheck --quiet docs docs/_build/linkcheck

.PHONY: dist
dist: $(STAMP)  ## build the last commit as a source archive and a wheel, in dist, byte for byte the same
	rm -rf dist
	@umask 022; export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct); \
	tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; \
	git archive HEAD | tar --extract --no-same-permissions --directory "$$tree"; \
	$(BIN)/python -m build --sdist --outdir "$$tree/dist" "$$tree"; \
	tar --extract --file "$$tree"/dist/*.tar.gz --directory "$$tree/dist"; \
	name=$$(basename "$$tree"/dist/*/); mkdir dist; \
	tar --create --sort=name --mtime="@$$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
	  --directory "$$tree/dist" "$$name" | gzip --no-name > "dist/$$name.tar.gz"; \
	$(BIN)/python -m build --wheel --outdir dist "$$tree/dist/$$name"; \
	sha256sum dist/*

.PHONY: bench
bench: $(STAMP) $(PEERS_STAMP)  ## time everything beside other libraries; minutes, on an idle machine
	for name in fisher fisher_models products plasticity plasticity_memory search_step micro_cnn_step \
	    nas_bench_201 decoder end_to_end devices launches; do \
	  $(BIN)/python -m benchmarks.$$name; done

# Each piece is a file, so that the same command goes on with those that are missing.
.PHONY: gpu accelerator
gpu: accelerator results/gpu/tests.txt results/gpu/times.txt  ## on a GPU or TPU: test, time, and search for an hour
	timeout --signal=INT $(GPU_TIME) $(BIN)/python -m experiments.search $(GPU_SEARCH) \
	  --resume --out results/gpu/search || (($$? == 124 || $$? == 130))
	tar --create --gzip --file results/gpu.tar.gz --exclude=checkpoints --exclude=tensorboard results/gpu
	@echo 'To read: results/gpu/times.txt. To send in: results/gpu.tar.gz'

accelerator: $(STAMP)
	@$(BIN)/python -c 'import sys, jax; sys.exit("error: JAX sees no GPU or TPU; install it for yours: \
	https://docs.jax.dev/en/latest/installation.html" if jax.default_backend() == "cpu" else 0)'

results/gpu/tests.txt: | $(STAMP)
	mkdir -p $(@D)
	XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_DEFAULT_MATMUL_PRECISION=highest \
	XLA_FLAGS=--xla_gpu_deterministic_ops=true \
	  $(BIN)/python -m pytest -n 4 --dist worksteal $(GPU_TESTS) | tee $@.partial || (($$? == 1))
	mv $@.partial $@

results/gpu/times.txt: | $(STAMP)
	mkdir -p $(@D)
	$(BIN)/python -m benchmarks.accelerator $(GPU_TIMES) | tee $@.partial
	mv $@.partial $@

.PHONY: peers
peers: $(PEERS_STAMP)  ## install the libraries that benchmarks compare with, in .venv-peers

$(PEERS_STAMP): benchmarks/peers/requirements.txt
	@$(check_python)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --requirement benchmarks/peers/requirements.txt
	touch $(PEERS_STAMP)

.PHONY: clean
clean:  ## remove the virtual environments and everything else that is built
	rm -rf .venv .venv-peers build dist docs/_build docs/notebooks *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find wpl_jax experiments tests -type d -name __pycache__ -prune -exec rm -rf {} +
