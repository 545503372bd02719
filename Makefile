# Everything from a bare clone. `make quickstart` and `make test` create the environment they need.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := runs/quickstart
CONFIG := configs/quickstart.py
RAW    := data/raw/ml-100k
DATA   := data/ml-100k
LISTS  := 8000
POSITIVES := 5
# Number of processes that run tests. All tests of a file run in one process, which compiles shared programs once.
# A process that crashes ends the run: pytest-xdist would start another one and wait for ever.
TEST_WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --max-worker-restart 0

# By default, glibc returns large blocks to the kernel after every step and faults them in again in the next step.
# Keeping them is faster on CPU and has no effect elsewhere.
export MALLOC_ARENA_MAX = 1
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 8589934592
export MALLOC_TOP_PAD_ = 67108864
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-fast lint format clean help

help:
	@echo "make quickstart   fetch data, train, evaluate, and write $(RUN)/report.html"
	@echo "make test         run linters, type checks and all tests"
	@echo "make test-fast    run linters and the tests that are not slow"
	@echo "make format       format the code"
	@echo "make clean        remove $(VENV), but not data/ and runs/"

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "r2rank_jax needs Python 3.11 or newer, got $(PYTHON); run: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

quickstart: $(VENV)/installed
	$(BIN)/r2rank data fetch ml-100k --out $(RAW)
	$(BIN)/r2rank data prepare --source $(RAW) --out $(DATA)
	$(BIN)/r2rank data synthesize --data $(DATA) --out $(DATA)/traces.jsonl --lists $(LISTS) --positives $(POSITIVES)
	$(BIN)/r2rank sft --config $(CONFIG) --run-dir $(RUN)
	$(BIN)/r2rank rl --config $(CONFIG) --run-dir $(RUN)
	$(BIN)/r2rank eval --config $(CONFIG) --run-dir $(RUN)
	$(BIN)/r2rank report --run-dir $(RUN)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST)

test-fast: $(VENV)/installed
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)
