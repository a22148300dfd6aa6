PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules of the API reference: what is called, then what is extended.
REFERENCE := $(addprefix hf_mabprune., pipeline result config.run preview artifacts.publish effects.masking checkpoints.load \
	evaluation.report evaluation.quality architectures.base tasks.base policies.base policies.epsilon_greedy \
	policies.softmax policies.ucb1 policies.thompson policies.hedge policies.exp3 policies.race \
	policies.sequential_halving policies.lucb policies.uniform policies.sweep policies.confidence_sequence \
	effects.rewards effects.gradients effects.interactions effects.refit_costs effects.kfac effects.obs \
	effects.activations effects.pulls.base search.allocation search.loop criteria.base compensation.base \
	compensation.refit compensation.dense_reference recovery.recover arms selection.plan selection.layouts surgery.cut \
	checkpoints.modeling_pruned registry)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: prune test lint slow docs clean

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

docs: $(VENV)/.installed  ## API reference in docs/api, from the docstrings
	$(BIN)/pdoc --docformat google --output-directory docs/api $(REFERENCE)

clean:
	rm -rf $(VENV) runs docs/api
