# make setup   an environment in .venv (or VENV=DIR) with all that is needed
# make demo    the main job, end to end, on drawn images
# make test    the tests that are quick; make test-all: all that need no GPU (tests/tiers.csv: what is in which)
# make test-lowest   quick tests with the oldest versions that pyproject.toml allows, in an environment of their own
# make lint    style and types; make bench: the converters' speed
# make faults  every fault of docs/reliability.md; make fuzz: 10,000 changed files (INPUTS=N, SEED=N)
# make docs    the documentation site in build/site; a broken link or a page missing from its navigation is an error
# make gpu     checks that training works on this machine's GPUs (ten minutes on one), and writes a page of PASS and FAIL
# make gpu-test   the tests that need a GPU: the same checks, and tests of single modules
# make gpu-bench  speed and memory by image size beside other libraries, and by the number of GPUs; continues if stopped
VENV ?= .venv
# The versions that are installed; with CONSTRAINTS= the newest.
CONSTRAINTS ?= constraints.txt
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO := runs/demo
INPUTS ?= 10000
SEED ?= 0
LOWEST ?= .venv-lowest
LOWEST_TESTS ?= tests/unit tests/distributed

# A file's tests stay together, as they share fixtures. The longest files are begun first (LONGEST_FILES in
# tests/tiers.py), so that no core waits for a long file at the end.
# One process more than cores, because many tests wait for other processes.
PYTEST_QUICKLY := $(BIN)/python -m pytest -n $(shell expr $$(nproc) + 1) --dist loadfile --no-loadscope-reorder

# Python keeps what it has compiled, whatever the environment says: the tests start many interpreters.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-all test-lowest test-slow equality faults fuzz lint bench docs gpu gpu-test gpu-bench clean
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) .ci/install.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/install.py $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev,export,bioimageio,lite0,bench]'
	touch $@

$(LOWEST)/.installed: pyproject.toml .ci/install.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python .ci/install.py --resolution lowest-direct --editable '.[dev,export,bench]'
	touch $@

demo: setup
	rm -rf $(DEMO)
	$(BIN)/glioma-dist demo --out $(DEMO)

test: setup
	$(PYTEST_QUICKLY) -m "not long and not slow and not gpu"

test-all: setup
	$(PYTEST_QUICKLY) --durations=20 -m "not slow and not gpu"

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n logical --dist loadfile -m "not long and not slow and not gpu" $(LOWEST_TESTS)

test-slow: setup
	$(BIN)/python -m pytest -m slow

equality: setup
	rm -f runs/equality.jsonl && mkdir -p runs
	EQUALITY_TABLE=runs/equality.jsonl $(BIN)/python -m pytest -m equality tests
	PYTHONPATH=tests $(BIN)/python -m equality.write_table runs/equality.jsonl

faults: setup
	FAULTS_TABLE=runs/faults.json $(BIN)/python -m pytest tests/faults
	$(BIN)/python tests/faults/write_tables.py --faults runs/faults.json

fuzz: setup
	rm -f runs/fuzz.json
	FUZZ_INPUTS=$(INPUTS) FUZZ_SEED=$(SEED) FUZZ_KEEP=runs/fuzz FUZZ_TABLE=runs/fuzz.json $(BIN)/python -m pytest tests/fuzz
	$(BIN)/python tests/faults/write_tables.py --fuzz runs/fuzz.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV)

bench: setup
	$(BIN)/python benchmarks/convert.py

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python .ci/install.py $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs-installed
	$(BIN)/python website/build_site.py

# `gpu` and `gpu-bench` write their results to a folder of docs/benchmarks/ named after the GPU.
gpu: setup
	$(BIN)/glioma-dist bench gpu

gpu-test: setup
	$(BIN)/python -m pytest -m gpu

gpu-bench: setup
	$(BIN)/glioma-dist bench resolution --sizes 704x512 1472x1120 2592x1952 --baselines smp eager --channels-last \
	  --find-largest
	$(BIN)/glioma-dist bench scaling

clean:
	rm -rf .venv runs/demo
