PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FUZZ_SECONDS ?= 60
POWER_CUTS ?= 300

.PHONY: run test slow powercut lint format bench fuzz api deb openapi clean

$(READY): pyproject.toml requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt --editable ".[daemon]"
	touch $@

run: $(READY)
	$(BIN)/python examples/tour.py

test: $(READY)
	$(BIN)/pytest -n auto -m "not slow and not alone" $(TESTS)
	$(if $(TESTS),,$(BIN)/pytest -m alone)

slow: $(READY)
	$(BIN)/pytest -n auto -m slow

# How many times the power is cut, at least.
powercut: $(READY)
	POWER_CUTS=$(POWER_CUTS) $(BIN)/pytest -n auto -m slow tests/durability/test_power_cuts.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m bench --update docs/benchmarks.md --json docs/benchmarks.json
	$(BIN)/python -m bench.fleet --update docs/fleet.md

api: $(READY)
	$(BIN)/python scripts/api_reference.py dist/api

deb: $(READY)
	packaging/build-deb $(BIN)/python

openapi: $(READY)
	$(BIN)/python -m layermanager.daemon > docs/openapi.json

# FUZZ_SECONDS for each target; after hours, .cache/fuzz holds what to begin with the next time.
fuzz: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement fuzz/requirements.txt
	for target in $$($(BIN)/python -m fuzz --list); do \
		PYTHONPATH=tests $(BIN)/python -m fuzz $$target --seconds $(FUZZ_SECONDS) || exit 1; \
	done

clean:
	rm -rf $(VENV) var dist .cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
