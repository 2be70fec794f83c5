# Two commands do everything from a bare checkout: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where it is set every process compiles what it imports anew: a third of a second each, of hundreds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-full test-slow mutate lint format clean

demo: $(STAMP)
	$(BIN)/kvmark run demo --offer-text

test: test-fast test-full

test-fast: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not full and not slow and not gpu and not peers"

test-full: $(STAMP)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -rs -m "full and not gpu and not peers"

# Not part of `make test`: what takes a minute each and shows little that the full tier does not.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -rs -m "slow and not gpu and not peers"

# Not part of `make test`: breaks each law of the models once and wants a test to notice (9 minutes).
mutate: $(STAMP)
	$(BIN)/python tests/mutate.py

include tests/peers/peers.mk

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[dev]"
	# Compiled side by side, and without what nobody here imports. Not left to the first import: whoever runs
	# kvmark under PYTHONDONTWRITEBYTECODE would wait for torch to be compiled each time.
	-$(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/testing/_internal/|/transformers/models/[^a]' $(VENV)/lib
	touch $@

clean:
	rm -rf $(VENV) .venv-peers build *.egg-info results/local reports/local
