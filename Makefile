# Everything runs in .venv, which `make env` builds from the exact versions of constraints.txt.
# PYTHON=... names the interpreter that builds it. ARGS="..." gives arguments to the program: make run ARGS="flow=euclidean seed=1"
# Tests run in a process for each core, at most four; make test PARALLEL= runs them in one.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
DOCS_STAMP := $(VENV)/.docs
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help env run test test-all bench results docs lint clean

help:
	@echo "make env       build .venv from pinned versions, once (needs python 3.11, takes a few minutes)"
	@echo "make run       do the main job: train a zoo, fit the geometric flow, generate new networks and score them"
	@echo "make test      run all tests, doctests and notebooks except the slow ones"
	@echo "make test-all  run the slow ones too"
	@echo "make bench     measure speed, and write benchmarks/results/ (needs MNIST, takes 12 minutes; see the README)"
	@echo "make results   rebuild the pages of results/ and the README's table from the kept runs"
	@echo "make docs      build the documentation site in docs/_build/html/"
	@echo "make lint      check the code with ruff"
	@echo "make clean     remove .venv, caches and all that was built; runs/ stays"

env: $(STAMP)

run: env
	$(BIN)/python experiments/run.py with flow=geometric $(ARGS)

test: env
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

test-all: env
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

bench: env
	$(BIN)/python benchmarks/bench.py $(ARGS)

results: env
	$(BIN)/python experiments/results.py $(ARGS)

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html $(ARGS)

lint: env
	$(BIN)/python -m ruff check . $(ARGS)

clean:
	rm -rf $(VENV) docs/_build docs/gathered build dist *.egg-info .pytest_cache .ruff_cache
	find geoflow tests experiments benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# One pip call installs everything, so that torch is chosen once, under the constraints. The stamp is made last, so that make repeats a
# build that failed.
$(STAMP): pyproject.toml constraints.txt
	@found=; for python in $(PYTHON) python3.11 python3 python; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python 3.11 with its venv module among: $(PYTHON) python3.11 python3 python." >&2; \
	    echo "Install it (Debian: apt install python3.11-venv; or pyenv, uv, conda), or name it: make env PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	set -x; "$$found" -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[docs]"
	@touch $@
