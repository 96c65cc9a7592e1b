# Two commands on a fresh machine: make train, make test. CONTRIBUTING.md says what the others are for.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
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

.PHONY: train test install check lint bench slow crash gpu gpu-dry clean
.DELETE_ON_ERROR:

train: $(STAMP)
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
	$(BIN)/pytest -q -m long

crash: $(STAMP)
	$(BIN)/pytest -q -m crash

# On a machine with a GPU: installs nothing, runs under the Python that is named, for at most LIMIT seconds; docs/gpu.md.
gpu:
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu --call $(CALL) --seconds $(LIMIT) --results $(RESULTS) \
	  --commit "$(COMMIT)" --data "$(DATA)" --env "$(TASK)" $(if $(PARTS),--parts $(PARTS))

# The same way without a GPU: both calls at toy sizes, no figure kept.
gpu-dry:
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu --dry $(if $(PARTS),--parts $(PARTS))

# The stamp comes last: an install that was interrupted is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"gtp-fast needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	[ "$$(uname)" != Linux ] || $(BIN)/python -m pip install -q --no-deps --target $(VENV)/$(OLD_TRITON) $(subst -,==,$(OLD_TRITON))
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
