PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUDO = $(if $(filter-out 0,$(shell id -u)),sudo)

.PHONY: demo test slow check wheel browser rivals device lint docs reproduce gpu-check bench

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed ## the main job on digits: a minute or two after installation
	$(BIN)/marshtest run digits-gaussian

test: $(VENV)/installed ## the tests, some five minutes on two cores: all but slow, browser, rivals
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

slow: $(VENV)/installed ## tests of two seconds or more each: simulations, kills, nodes, walk-throughs
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m slow $(TESTS)

check: lint test slow rivals device wheel browser ## everything, in half an hour: before a release

# The wheel is made from the source distribution, so that both are whole.
wheel: PARTS = .wheel
wheel: ## sdist and wheel, in dist/; a fresh environment without extras runs the demo's recipe from it
	rm -rf $(PARTS) dist
	$(PYTHON) -m venv $(PARTS)/build
	$(PARTS)/build/bin/pip install --quiet hatchling
	$(PARTS)/build/bin/hatchling build --target sdist
	$(PARTS)/build/bin/pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz
	$(PYTHON) -m venv $(PARTS)/plain
	$(PARTS)/plain/bin/pip install --quiet --no-compile --constraint constraints.txt dist/*.whl
	OMP_NUM_THREADS=1 $(PARTS)/plain/bin/python -P tests/wheel.py
	rm -rf $(PARTS)

# Not in `test`: Chromium is a system package of several hundred MB, and installing it needs root.
browser: $(VENV)/installed ## the page in a real browser, which is installed where there is none
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { $(SUDO) apt-get update --quiet && $(SUDO) apt-get install --quiet --yes chromium; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[browser]'
	command -v npm || $(SUDO) apt-get install --quiet --yes npm
	npm install --silent --prefix $(VENV)/axe axe-core@4.14.1
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser

# Beside the environment and not in it: their pins contradict ours. 110 MB, a quarter of a minute in all.
rivals: RIVALS = $(VENV)/rivals/site-packages
rivals: $(VENV)/installed ## unlearners of other packages, called and judged
	$(BIN)/pip install --quiet --upgrade --no-deps --target $(RIVALS) --requirement tests/rivals/requirements.txt
	PYTHONPATH=$(RIVALS):examples/foreign OMP_NUM_THREADS=1 $(BIN)/pytest tests/rivals

# A process of its own: the device must be there before torch is imported.
device: $(VENV)/installed ## the protocol on a simulated CUDA device, in minutes; needs a C++ compiler
	PYTHONPATH=tests/device OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 -p cuda_guard tests/device

lint: $(VENV)/installed ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed ## the site, in site/: open site/index.html
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reproduce: $(VENV)/installed ## all tables of measured numbers in the documents, and their figures, from rows
	$(BIN)/cog -r -P -I docs/reproduce -p "from claims import *; from experiments import *; from tables import *; from rivals import *; from membership import *; from marks import *; from walkthrough import *; from epsilons import *; from cli_reference import *" \
	  README.md docs/index.md docs/cli.md docs/results.md docs/rivals.md docs/membership.md docs/mathematics.md docs/marks.md docs/audit-text.md docs/audit-tables.md docs/certificate.md docs/compared.md docs/reproduce.md docs/unlearners.md docs/paper.md docs/gpu.md docs/first-hour.md docs/audit.md
	$(BIN)/python docs/reproduce/pictures.py

gpu-check: $(VENV)/installed ## on a machine with a GPU: what docs/gpu.md foretells, measured, in gpu-check.json
	$(BIN)/python benchmarks/gpu.py

bench: $(VENV)/installed ## speed, side by side with plain PyTorch and a rival
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/kit.py
	$(BIN)/python benchmarks/kernel.py
	$(BIN)/python benchmarks/solvers.py
	$(BIN)/python benchmarks/language.py
	$(BIN)/python benchmarks/sweeps.py
	$(BIN)/python benchmarks/reports.py
	$(BIN)/python benchmarks/verdict
	$(BIN)/python benchmarks/controls.py
