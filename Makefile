PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: prune test lint slow clean

prune: $(VENV)/.installed  ## prune the embedded model: the first thing to try
	$(BIN)/accelerate launch --config_file configs/accelerate/one_process.yaml scripts/prune.py \
		--config configs/quickstart.yaml

test: $(VENV)/.installed lint  ## everything that must be green
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(VENV)/.installed  ## minutes-long tests
	$(BIN)/python -m pytest -m slow

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) runs
