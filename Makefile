# make demo: set up and stream.   make test: set up and pass.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
PYTHON ?= $(shell command -v python3.11 || command -v python3)

ENGINES ?= 2
DEVICE ?= cpu
PORT ?= 8080
DIR ?= run
WORKERS ?= 3
# Half of all modules, of which few are ever imported: those are compiled then.
SELDOM := /site-packages/(kubernetes|sympy|mpmath|networkx|pip|setuptools|pygments|mypyc?)/

.PHONY: setup demo test browser style types coverage bench

setup: $(STAMP)

# A stamp file: nothing is installed again until the requirements change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: apt-get install python3 python3-venv, or make PYTHON=/path/to/python3'; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || \
	  { rm -rf $(VENV); echo 'The environment could not be made: apt-get install python3-venv'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS) \
	  -c constraints.txt -e '.[server,kubernetes,dev]'
	@$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true  # on all processors, pip does it on one
	@touch $@

demo: $(STAMP)
	@$(BIN)/turboserve up --engines $(ENGINES) --device $(DEVICE) --port $(PORT) --dir '$(DIR)'

# More at a time than a small machine has processors, a file each: the slow tests mostly wait for other processes.
test: $(STAMP) browser
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 2 $(PYTEST_ARGS)

# The browser tests drive a real Chromium.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install chromium >/dev/null; } || \
	  echo 'No Chromium here, and the browser tests need one: apt-get install chromium'

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	nice -n 5 $(BIN)/mypy

coverage: $(STAMP)
	$(BIN)/python -m pytest -q --cov=scheduler --cov=gateway --cov=engine --cov=launch --cov-report=term-missing

bench: $(STAMP)
	$(BIN)/python -m bench.slice
