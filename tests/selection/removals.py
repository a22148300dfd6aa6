"""Arms that a plan removes, in their order."""

from collections.abc import Sequence

import numpy as np

from hf_mabprune.selection.plan import Plan
from tests.problems import whole

TOTALS = {"parameters": 100, "macs": 200}


def removed(plan: Plan, scores: Sequence[float], progress: float = 1.0) -> list[int]:
    """Arms that go, in their order; what stays is checked to be the others."""
    kept, order = plan.choose(np.array(scores, dtype=float), whole(plan.arms), progress)
    assert sorted(order) == np.flatnonzero(~kept).tolist()
    return order.tolist()


def steps_of(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Numbers of arms that the sites of each kind may keep, of plans that tie all sites of a kind."""
    kinds = {site: str(plan.arms.kind[rows[0]]) for site, rows in plan.arms.groups()}
    steps = {kinds[tied.sites[0]]: tied.steps for tied in plan.tied}
    assert sorted(site for tied in plan.tied for site in tied.sites) == sorted(kinds)
    return steps
