# `make demo` and `make test` work on a fresh machine: they install into .venv what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@

demo: $(VENV)/.installed
	$(BIN)/vit3d demo --bundle bundles/hippocampus_segmentation --output demo_output

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# one process a core, one thread a process: faster, and the same figures on every machine
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --nbmake --nbmake-timeout=600 tests tutorials

# the quick form of what the README's tables of times say; each file prints its peer and its limit
bench: $(VENV)/.installed
	$(BIN)/python -W ignore benchmarks/startup.py --rounds 3
	$(BIN)/python -W ignore benchmarks/reading.py --rounds 3
	$(BIN)/python -W ignore benchmarks/saving.py --rounds 3
	$(BIN)/python -W ignore benchmarks/stitching.py --rounds 3
	$(BIN)/python -W ignore benchmarks/inverting.py --rounds 3
	$(BIN)/python -W ignore benchmarks/patch_embed.py --rounds 5
	$(BIN)/python -W ignore benchmarks/network.py --quick
	$(BIN)/python -W ignore benchmarks/decoders.py
	$(BIN)/python -W ignore benchmarks/volume.py --quick

clean:
	rm -rf $(VENV) demo_output runs
