# make demo    the main job on real data, from nothing but a clone
# make test    what CI runs: lint, format, types, tests
# make test-full  the same and the slow tests: every flipped bit, every crash, the suite's largest files (tests/README.md)
# make fuzz SECONDS=60  all fuzzing harnesses (fuzz/README.md)
# make bench   every figure of size, speed and memory that the README quotes (benchmarks/README.md)
# make paper   what every method keeps of real experts, at what size: trains, keeps, reads back, measures (about 15 minutes)
# make frontier  which rule of tsw pack keeps most at each size, with the checkpoints of make paper

PYTHON ?= python3.11
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: demo test test-full lint format fuzz bench paper frontier clean

demo: $(READY)
	$(BIN)/python -m benchmarks.demo

test: lint
	$(BIN)/pytest -m 'not slow'

test-full: lint
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# With Atheris where it can be installed, else with mutations of our own; fuzz/README.md.
SECONDS ?= 60
fuzz: $(READY)
	-$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m fuzz all --seconds $(SECONDS)

bench: $(READY)
	$(BIN)/python -m benchmarks size
	$(BIN)/python -m benchmarks memory
	$(BIN)/python -m benchmarks speed
	$(BIN)/python -m benchmarks selecting
	$(BIN)/python -m benchmarks switching
	$(BIN)/python -m benchmarks mixed
	$(BIN)/python -m benchmarks overlap
	$(BIN)/python -m benchmarks tall

paper: $(READY)
	$(BIN)/python -m benchmarks paper

frontier: $(READY)
	$(BIN)/python -m benchmarks frontier --keep
	$(BIN)/python -m benchmarks ideas --keep

# The environment is made anew when what it needs has changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
