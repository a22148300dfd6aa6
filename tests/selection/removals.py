"""Arms that a plan removes, in their order."""

from collections.abc import Sequence

import numpy as np

from hf_mabprune.selection.plan import Plan
from tests.problems import whole

ONE = {"neuron": 1, "head": 1}
TOTALS = {"parameters": 100, "macs": 200}


def removed(plan: Plan, scores: Sequence[float], progress: float = 1.0) -> list[int]:
    """Arms that go, in their order; what stays is checked to be the others."""
    kept, order = plan.choose(np.array(scores, dtype=float), whole(plan.arms), progress)
    assert sorted(order) == np.flatnonzero(~kept).tolist()
    return order.tolist()
