"""Selections along a finished order of removals."""

from typing import Any

import numpy as np
import pytest

from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.selected import Selection
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, table
from tests.seeds import moved


@pytest.mark.parametrize("target", [{"parameters": 0.3}, {"macs": 0.4}, {"neurons": 0.5, "heads": 0.25}])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_cutting_along_the_order_gives_what_the_search_removed(target: dict[str, float], layout: Any) -> None:
    arms = table(neurons=[[8] * 6] * 2, heads=[[1] * 4] * 2, parameters=(3, 5), macs=(7, 2))
    totals = {"parameters": 2 * int(arms.parameters.sum()), "macs": 2 * int(arms.macs.sum())}
    plan = make_plan(arms, TargetConfig(**target), totals, layout, limits(arms, layout=layout))
    rng = np.random.default_rng(moved(0))
    kept, order = np.ones(len(arms), dtype=bool), []
    for progress in (0.3, 0.7, 1.0):
        kept, removed = plan.choose(rng.normal(size=len(arms)) - 1, kept, progress)
        order.append(removed)
    order.append(np.flatnonzero(kept))
    assert np.array_equal(Selection.along(plan, np.concatenate(order), 1, 1).kept, kept)
