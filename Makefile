# `make demo` and `make test` work on a fresh machine: they install into .venv what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
LOWEST_PYTHON ?= $(shell python3.10 -c "import sys; print(sys.executable)" 2> /dev/null || echo $(PYTHON))

.PHONY: demo test quick chromium test-lowest lint docs bench clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@

demo: $(VENV)/.installed
	$(BIN)/vit3d demo --output demo_output

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# one process a core, one thread a process: faster, and the same figures on every machine; modules go to the processes
# in the order of their names, so that the long ones of tutorials and bundles come first. Bytecode is kept even where the
# environment forbids it: else each of some hundred processes would compile this package and the tests anew
PYTEST_OPTIONS := --numprocesses 2 --dist loadscope --no-loadscope-reorder

test: lint chromium
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(PYTEST_OPTIONS) --durations=40 --nbmake --nbmake-timeout=600 tutorials tests

# the quick tests; `python -m tests.touched` names modules that they do not touch
quick: $(VENV)/.installed
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(PYTEST_OPTIONS) -m "not slow" tests

# a test opens the page of a run in a browser; where none can be had, pytest's last lines say that it was skipped
chromium:
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
	    { apt-get update && apt-get install --yes --no-install-recommends chromium; } > /dev/null 2>&1; } || \
	  echo "There is no Chromium, and none was installed: the test that opens a report in it will be skipped."

# the quick tests with the lowest releases that setup.cfg allows, in a virtual environment of their own
$(LOWEST)/.installed: setup.cfg constraints-lowest.txt
	$(LOWEST_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable .[dev]
	touch $@

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(PYTEST_OPTIONS) -m "not slow" tests

# the documentation site, from documents, notebooks and code, into site/
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .[docs]
	$(BIN)/python docs/site/build.py site

# the quick form of what docs/speed.md says; each file prints its peer and its limit
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
	rm -rf $(VENV) $(LOWEST) demo_output runs site
