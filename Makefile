# Everything runs in .venv, which the first target makes and a change of pyproject.toml makes anew.
# Needed: Python 3.11 or newer, a C++ compiler, make.  Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
READY_DOCS := .venv/ready-docs

# The stamp is written last and holds the place it was made for, so that a half-made, broken or moved environment
# is made anew.
ifneq ($(shell $(BIN)/python -c "import sys" 2>/dev/null && cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

.PHONY: demo test lowest lint types docs clean

demo: $(READY)
	$(BIN)/meanfield run sims/quickstart.toml --out runs/quickstart

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist loadscope

# The suite on the lowest versions that pyproject.toml allows, in an environment of its own.
lowest:
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint tests/lowest.txt --editable '.[test]'
	.venv-lowest/bin/python -m pytest -q -n auto --dist loadscope

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(READY)
	$(BIN)/python -m mypy

docs: $(READY_DOCS)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d build/doctrees docs build/docs
	@echo 'The pages: build/docs/index.html'

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    "Python 3.11 or newer is wanted, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@printf '%s' '$(CURDIR)' > $(READY)

$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $(READY_DOCS)
