"""Which layout is taken where both are possible."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_mabprune.config import PruningConfig
from hf_mabprune.evaluation.choice import select
from hf_mabprune.search.result import SearchResult
from hf_mabprune.selection.layouts import make_plans
from tests.problems import arms_of, problem


@pytest.mark.parametrize(
    ("per_layer", "uniform", "layout"),
    [
        (0.5, 0.5, "uniform"),
        (0.5, 0.9, "per_layer"),
        (0.5, np.nan, "per_layer"),
        (np.nan, 0.9, "uniform"),
        (np.inf, 0.9, "uniform"),
        (np.nan, np.nan, "per_layer"),
    ],
)
def test_a_loss_that_is_no_number_is_the_worse_one(per_layer: float, uniform: float, layout: str) -> None:
    model, _, batches, _ = problem("bert")
    arms = arms_of(model, 16, batches, ["neuron"])
    losses = iter([per_layer, uniform])
    totals = {"parameters": 10**6, "macs": 10**6}
    session = SimpleNamespace(dense=model, plans=lambda prune: make_plans(model, arms, totals, prune))
    comparison: Any = SimpleNamespace(session=session, masked=lambda *_, **__: SimpleNamespace(loss=next(losses)))
    found = SearchResult.of_all(len(arms))
    found.order = np.arange(len(arms))
    prune = PruningConfig.model_validate({"target": {"neurons": 1 / 3}})
    assert select(comparison, found, prune).plan.layout == layout
