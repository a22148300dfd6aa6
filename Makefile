PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where `make docs` puts the site.
SITE := build/site
# Where `make lowest` works, which transformers it tries besides the lowest, and the tests that it runs.
LOWEST := .venv-lowest
LOWEST_BIN := $(LOWEST)/bin
LOWEST_TRANSFORMERS ?= 5.19.*
CONTRACTS := $(addprefix tests/, architectures artifacts checkpoints cli compensation config criteria effects policies \
	runtime selection surgery tasks test_equivalence.py test_pipeline.py test_wheel.py)
# Modules of the API reference: what is called, then what is extended; and all that lies in open folders.
OPEN := architectures tasks policies criteria compensation exports places effects/rewards search/rules
REFERENCE := $(addprefix hf_mabprune., pipeline recut export carry report_page preview training sparse_checkpoint sparsity.sparsity sparsity.schedules result session config.run config.search config.target \
	artifacts.stored artifacts.publish artifacts.run_folder artifacts.run_writer artifacts.verification \
	artifacts.remade artifacts.remaking artifacts.fit artifacts.checksums effects.masking checkpoints.load \
	checkpoints.sharded checkpoints.table_processor checkpoints.modeling_pruned evaluation.report evaluation.figures evaluation.quality evaluation.bounds evaluation.examples evaluation.groups \
	effects.gradients effects.interactions effects.refit_costs effects.kfac effects.obs \
	effects.activations effects.dense_outputs effects.pulls.base effects.pulls.cost search.run search.loop \
	search.allocation recovery.recover recovery.course recovery.losses arms selection.plan selection.target selection.layouts \
	selection.selected surgery.cut surgery.in_training surgery.pieces registry plugins)
REFERENCE += $(subst /,.,$(basename $(wildcard $(OPEN:%=hf_mabprune/%/[a-z]*.py))))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: prune test quick lint slow hostile families lowest docs clean

prune: $(VENV)/.installed  ## prune the embedded model: the first thing to try
	$(BIN)/accelerate launch --config_file configs/accelerate/one_process.yaml scripts/prune.py \
		--config configs/quickstart.yaml

test: $(VENV)/.test lint  ## everything that must be green
	$(BIN)/python -m pytest -n 2 --durations=25

quick: $(VENV)/.test  ## the tests that make no whole run: for the inner loop
	$(BIN)/python -m pytest -n 2 -m "not whole and not slow and not gpu"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(VENV)/.test  ## minutes-long tests
	$(BIN)/python -m pytest -m slow

hostile: $(VENV)/.test  ## hostile folders, files and settings on the command line: at least 80 a kind of fault
	$(BIN)/python -m tests.hostile $(HOSTILE)

families: $(VENV)/.test  ## the table of families, from what the tests show of every type; takes minutes
	-$(BIN)/python -m pytest -n 2 --shows -m "not gpu" --junitxml=build/families.xml
	$(BIN)/python scripts/families.py build/families.xml

lowest:  ## contract tests on the lowest versions that pyproject.toml allows, then with another transformers
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST_BIN)/pip install -q --no-deps -e . packaging
	$(LOWEST_BIN)/python scripts/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST_BIN)/pip install -q -c $(LOWEST)/constraints.txt -e . pytest pytest-xdist mabwiser tensorboardX "setuptools>=77"
	$(LOWEST_BIN)/python -m pytest -n 2 $(CONTRACTS)
	$(LOWEST_BIN)/pip install -q "transformers==$(LOWEST_TRANSFORMERS)"
	$(LOWEST_BIN)/python -m pytest -n 2 $(CONTRACTS)

# The package alone, for a first run; and what tests, lint and documentation take besides.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	touch $@

docs: $(VENV)/.test  ## the tables and pictures that are made of the code, and a site of all pages, with the API reference
	$(BIN)/python scripts/components.py
	$(BIN)/python scripts/rooms.py
	$(BIN)/sphinx-build -q -W --keep-going -c docs . $(SITE)
	$(BIN)/pdoc --docformat google --output-directory $(SITE)/api $(REFERENCE)

clean:
	rm -rf $(VENV) $(LOWEST) runs build
