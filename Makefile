# make quickstart: install what is locked, and run a real sweep on this machine
# make test:       the same set-up, then the tests
# make test-all:   those too that take long: whole sweeps under faults, one after another
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
QUICKSTART := .quickstart/docstrings.csv

AUDIT := .audit-venv
.PHONY: install quickstart test test-all lint docs lock audit sbom clean
install: $(READY)

$(READY): requirements.lock requirements-quickstart.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; choose another with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r requirements-quickstart.lock
	@touch $(READY)

$(QUICKSTART): $(READY) sweeps/quickstart.py
	$(BIN)/python -m sweeps.quickstart $@

quickstart: $(QUICKSTART)
	$(BIN)/python -m sweeps run sweeps/quickstart.yaml

# in the order of the folders, so that the files that start Ray clusters do not come last
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(QUICKSTART)
	$(PYTEST) -m "not long"

test-all: $(QUICKSTART)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright

# the pages of docs/ as a site; a link that leads nowhere is an error
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir .site

# what a fresh resolution installs today; CUDA packages are left to the torch that a machine takes
lock:
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --disable-pip-version-check --quiet 'torch==2.13.0' '.[dev]'
	.lock-venv/bin/python -m pip freeze --exclude finetune-sweeps | sed 's/+cpu$$//' | grep -viE '^(nvidia-|cuda-|triton)' > requirements.lock
	.lock-venv/bin/python -m pip install --disable-pip-version-check --quiet uv
	echo '# requirements.lock without torch, with the hashes of all files of each version; `make lock` writes both.' > requirements-hashed.lock
	grep -v '^torch==' requirements.lock | .lock-venv/bin/uv pip compile --quiet --no-deps --generate-hashes --universal --python-version 3.11.7 --no-annotate --no-header - >> requirements-hashed.lock
	rm -rf .lock-venv

# tools that look at the dependencies, in an environment of their own
$(AUDIT)/.ready:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

# known weak points of what is locked; asks PyPI, and fails where that does not answer for a package
audit: $(AUDIT)/.ready
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock --requirement requirements-quickstart.lock

# a bill of materials of what is installed (CycloneDX); its validation would ask other servers
sbom: $(AUDIT)/.ready $(READY)
	$(AUDIT)/bin/cyclonedx-py environment --output-format JSON --no-validate --output-file sbom.json $(BIN)/python

clean:
	rm -rf $(VENV) $(AUDIT) sbom.json .quickstart .site .pytest_cache .ruff_cache
