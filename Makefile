# make setup   an environment in .venv (or VENV=DIR) with all that is needed
# make demo    the main job, end to end, on drawn images
# make test    the tests that are quick; make test-all: all that need no GPU (tests/tiers.py: what is in which)
# make lint    style; make bench: the converters' speed
# make faults  every fault of docs/reliability.md; make fuzz: 10,000 changed files (INPUTS=N, SEED=N)
# make gpu     on a machine with a GPU: its tests, and the resolution benchmark beside its baselines
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO := runs/demo
INPUTS ?= 10000
SEED ?= 0
LAUNCH := $(BIN)/accelerate launch --quiet --config_file accelerate_configs/$(shell \
	if nvidia-smi -L >/dev/null 2>&1; then echo gpu; \
	elif [ "$$(nproc 2>/dev/null || echo 1)" -ge 2 ]; then echo cpu_2_processes; else echo cpu; fi).yaml

# A file's tests stay together, as they share fixtures. Files are begun in the order of their names: the folders with the
# longest ones come first, so that no core waits for a long file at the end.
PYTEST_QUICKLY := $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-all test-slow faults fuzz lint bench gpu clean
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt .ci/install.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/install.py --constraint constraints.txt --editable '.[dev,export,lite0,bench]'
	touch $@

demo: setup
	rm -rf $(DEMO)
	$(BIN)/python tools/make_demo_data.py --out $(DEMO)/source
	$(BIN)/python tools/convert_livecell.py --source $(DEMO)/source/livecell --out $(DEMO)/shards/livecell
	$(BIN)/python tools/convert_glioma_c6.py --source $(DEMO)/source/glioma_c6 --out $(DEMO)/shards/glioma_c6
	$(LAUNCH) train.py --data.train $(DEMO)/shards/glioma_c6/train --data.val $(DEMO)/shards/glioma_c6/val \
	  --data.size 256x256 --data.transform random-crop --data.augment flips --data.workers 1 --model.encoder mit_b0 \
	  --batch-size 4 --lr 1e-3 --epochs 1000 --max-steps 64 --eval-every 32 --out $(DEMO)/run
	$(LAUNCH) evaluate.py --checkpoint $(DEMO)/run/best --data $(DEMO)/shards/glioma_c6/test --out $(DEMO)/scores.json
	$(BIN)/python predict.py --checkpoint $(DEMO)/run/best \
	  --images '$(DEMO)/source/glioma_c6/dataset/spec/test/images/*_0[123].tif' --out $(DEMO)/masks
	@echo "Scores: $(DEMO)/scores.json. Pictures to look at (drawn cells, not photographed ones):"
	@ls $(DEMO)/masks/*.overlay.png

test: setup
	$(PYTEST_QUICKLY) -m "not long and not slow and not gpu"

test-all: setup
	$(PYTEST_QUICKLY) --durations=20 -m "not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m slow

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

bench: setup
	$(BIN)/python tools/bench_convert.py

gpu: setup
	$(BIN)/python -m pytest -m gpu
	$(LAUNCH) tools/bench_resolution.py --sizes 704x512 1472x1120 2592x1952 --baselines smp eager --channels-last \
	  --find-largest --out docs/benchmarks/gpu

clean:
	rm -rf .venv runs/demo
