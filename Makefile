# make longcycle   set everything up, run the acceptance suite with the profile this machine allows
# make test        set everything up, run the tests (a worker that is done takes over tests of another)
# make lint        ruff
# make docs        the documentation as a site, in output/site; a broken link fails
# ARGS is handed to pytest: make longcycle ARGS="--cases deepmimic_humanoid_ppo --lf"; -n 0: one case after the other

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
PY := $(VENV)/bin/python

# without bytecode every process would compile torch and Newton anew: 5 s each
unexport PYTHONDONTWRITEBYTECODE

.PHONY: longcycle test lint docs setup clean
longcycle: setup
	$(PY) -m pytest -m longcycle -n auto $(ARGS)

test: setup
	$(PY) -m pytest -n auto --dist worksteal $(ARGS)

lint: setup
	$(PY) -m ruff check .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "docs: output/site/index.html"

$(VENV)/.docs: $(VENV)/.ready
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -c $(CONSTRAINTS) -e ".[docs]"
	touch $@

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS) tools/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) CONSTRAINTS=$(CONSTRAINTS) sh tools/setup.sh
	touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
