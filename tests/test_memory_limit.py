"""The limit of what is kept decides what a run holds in memory, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.result import PruneResult
from tests.problems import settings_for

pytestmark = pytest.mark.whole
NOTHING = 1e-9  # GiB


def run(place: Path, data: dict[str, str], model_type: str, memory: float, rule: str) -> PruneResult:
    folder = {"dir": str(place / f"{model_type}-{rule}-{memory}")}
    rounds = {"rounds": None if rule == "refit" else 2}
    settings = settings_for(place, data, model_type, search={"memory": memory, "rule": rule, **rounds}, output=folder)
    return prune_from_config(settings)


@pytest.mark.parametrize(("model_type", "rule"), [("llama", "refit"), ("bert", "interactions"), ("mixtral", "refit")])
def test_a_run_finds_the_same_with_no_memory_as_with_much(
    tmp_path: Path, data: dict[str, str], model_type: str, rule: str
) -> None:
    tight, roomy = (run(tmp_path, data, model_type, memory, rule) for memory in (NOTHING, 4.0))
    assert np.array_equal(tight.search.order, roomy.search.order)
    assert np.array_equal(tight.search.scores, roomy.search.scores)
    weights = roomy.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tight.model.state_dict().items())
    assert tight.report.after.metrics == roomy.report.after.metrics
