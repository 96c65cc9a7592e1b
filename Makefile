# Two commands on a fresh machine: make train, make test. CONTRIBUTING.md explains the others.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRAINS := $(VENV)/.trains# stamp: what make train needs is installed
STAMP := $(VENV)/.installed# stamp: everything is
PIP := $(BIN)/python -m pip install --no-compile# the last step compiles what is needed, below
TORCH := torch==2.13.0
OLD_TRITON := triton-3.6.0# the oldest that is supported; tests and bench.static compile the kernels with it, too
TRAIN_FLAGS ?=
TEST_FLAGS ?=
RESULTS ?= bench/results
COMMIT ?=
PARTS ?=
CALL ?= first
LIMIT ?= 380
DATA ?=
TASK ?=
DAY ?= $(shell date +%Y%m%d)

.PHONY: train test install check lint bench slow crash gpu gpu-dry clean
.DELETE_ON_ERROR:

train: $(TRAINS)
	$(BIN)/gtp-fast train --env hopper-demo-v0 $(TRAIN_FLAGS)

test: $(STAMP)
	$(BIN)/pytest -q -m "not gpu and not crash and not long" -n 2 --dist worksteal $(TEST_FLAGS)

# For .ci/run, which keeps a clock.
install: $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/pytest -q -m "not gpu and not crash and not long and not slow" -n 2 --dist worksteal

# What make check needs beside its tests, for a CI that runs all tests anyway.
lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# The first prints the timing table and writes it to bench/results.
bench: $(STAMP)
	$(BIN)/pytest bench/ --benchmark-only
	PYTHONPATH=.:kernels $(BIN)/python -m bench.static --precision tf32

slow: $(STAMP)
	$(BIN)/pytest -q -m "long and not gpu" -n 2 --dist worksteal

# Kills, damage and properties are drawn by the seed of the day; make crash DAY=20261127 draws those of that day again.
crash: $(STAMP)
	@echo '== Seed $(DAY); make crash DAY=$(DAY) repeats what follows'
	$(BIN)/pytest -q -m "crash or (hypothesis and not gpu and not long)" \
	  --hypothesis-seed=$(DAY) --hypothesis-profile=daily

# On a machine with a GPU: installs nothing, runs under the Python that is named, for at most LIMIT seconds; docs/gpu.md.
gpu:
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu --call $(CALL) --seconds $(LIMIT) --results $(RESULTS) \
	  --commit "$(COMMIT)" --data "$(DATA)" --env "$(TASK)" $(if $(PARTS),--parts $(PARTS))

# The same way without a GPU: both calls at toy sizes, no figure kept.
gpu-dry:
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu --dry $(if $(PARTS),--parts $(PARTS))

# A stamp comes last: an install that was interrupted is done again. Sizes are those of the wheels that constraints.txt
# names, for Python 3.11 on Linux (2026-11-26). pip would compile all of torch; training imports 27 % of it. Without pip's
# compiling, installing torch takes 10 s of CPU time, not 34 s (AMD EPYC, 2026-11-26). What is imported often is compiled
# in a last step, for environments in which Python may write no caches (PYTHONDONTWRITEBYTECODE).
$(TRAINS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"gtp-fast needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	@echo '== Installing what training needs into $(VENV), in 3 steps'
	$(PYTHON) -m venv $(VENV)
	@echo '== 1 of 3: $(TORCH). For CPUs alone 10 packages, 0.2 GB; from PyPI on Linux 29 packages, 2.7 GB, with CUDA.'
	@[ "$$(uname)" != Linux ] || command -v nvidia-smi >/dev/null || \
	  echo '   No NVIDIA GPU here? PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make train fetches the 0.2 GB.'
	$(PIP) -c constraints.txt $(TORCH)
	@echo '== 2 of 3: gtp-fast and its dependencies, 49 packages, 89 MB'
	$(PIP) -c constraints.txt -e .
	@echo '== 3 of 3: compiling what training imports, nothing to fetch'
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import gtp_fast.training.train, gtp_fast.experiments.figures'
	@touch $@

$(STAMP): $(TRAINS)
	@echo '== Installing what tests, checks and benchmarks need on top into $(VENV), in 3 steps'
	@echo '== 1 of 3: linters, Ray, OGBench, dm_control, W&B, ONNX, Triton and more, 65 packages, 593 MB'
	$(PIP) -c constraints.txt -e '.[dev]'
	@echo '== 2 of 3: $(OLD_TRITON), 1 package, 188 MB, on Linux alone'
	[ "$$(uname)" != Linux ] || $(PIP) --no-deps --target $(VENV)/$(OLD_TRITON) $(subst -,==,$(OLD_TRITON))
	@echo '== 3 of 3: compiling all of it, nothing to fetch'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV) || true  # some packages hold files for other Pythons
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
