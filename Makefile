# make demo    the main job on real data, from nothing but a clone
# make test    what CI runs: lint, format, types, tests
# make test-full  the same and the slow tests: every flipped bit, every crash, the suite's largest files (tests/README.md)
# make fuzz SECONDS=60  all fuzzing harnesses (fuzz/README.md)
# make bench   size, speed and memory beside peers, in 20 minutes (benchmarks/README.md); benchmarks/results/latest.md sums up
# make bench-all  the same and the longer ones: masks of several tasks, mixed batches, codecs, ways of selecting
# make bench-check  has anything become slower? Ratios of a quick subset against the committed ones; fails where one is worse
# make paper   what every method keeps of real experts, at what size: trains, keeps, reads back, measures (a quarter of an hour)
# make frontier  which rule of tsw pack keeps most at each size, with the checkpoints of make paper

PYTHON ?= python3.11
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: demo test test-full lint format fuzz bench bench-all bench-check paper frontier clean

demo: $(READY)
	$(BIN)/python -m benchmarks.demo

# A process for each core. PYTEST= runs it in one, as when something must be debugged.
PYTEST ?= --numprocesses auto --dist worksteal

test: lint
	$(BIN)/pytest -m 'not slow' $(PYTEST)

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

# With the peers of benchmarks/peers, which nothing else needs.
bench bench-all: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks bench $(if $(filter bench-all,$@),--all) $(if $(SCALE),--scale $(SCALE))

bench-check: $(READY)
	$(BIN)/python -m benchmarks check --out build/bench-check

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
