"""Selections: whatever the scores are, a plan is met, floors hold, and smaller sizes are nested in larger ones."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.selected import Selection
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, table, whole

SCORE = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, -np.inf, np.inf, np.nan])


@st.composite
def plans(draw: st.DrawFn) -> list[Plan]:
    """Draws plans of two sizes over the same arms, the larger model first."""
    layout = draw(st.sampled_from(["per_layer", "uniform"]))
    layers, neurons, heads = draw(st.integers(1, 3)), draw(st.integers(2, 9)), draw(st.integers(2, 5))
    block = draw(st.sampled_from([1, 4]))
    arms = table([[block] * neurons] * layers, [[1] * heads] * layers, (10 * block, 40), (30 * block, 90))
    fractions = sorted(draw(st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9))))
    name = draw(st.sampled_from(["neurons", "heads", "parameters", "macs"]))
    totals = {"parameters": 2 * int(arms.parameters.sum()), "macs": 2 * int(arms.macs.sum())}
    try:
        made = [
            make_plan(arms, TargetConfig(**{name: part}), totals, layout, limits(arms, layout=layout))  # type: ignore[arg-type]
            for part in fractions
        ]
    except ValueError as error:
        assert "target" in str(error)
        assume(False)
    return made


def scores_for(draw: st.DrawFn, arms: ArmTable) -> np.ndarray:
    return np.array(draw(st.lists(SCORE, min_size=len(arms), max_size=len(arms))))


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[Plan], np.ndarray]:
    made = draw(plans())
    return made, scores_for(draw, made[0].arms)


def removed_of(plan: Plan, kept: np.ndarray) -> float:
    (budget,) = plan.budgets
    return float(budget.cost[budget.candidates[~kept[budget.candidates]]].sum())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@given(scored())
def test_any_scores_meet_the_budget_and_leave_the_floors(made: tuple[list[Plan], np.ndarray]) -> None:
    (plan, _), scores = made
    kept, removed = plan.choose(scores, whole(plan.arms))
    assert sorted(removed) == np.flatnonzero(~kept).tolist(), "each arm goes once"
    safe, _ = plan.choose(np.zeros(len(scores)), whole(plan.arms))
    assert removed_of(plan, kept) == pytest.approx(removed_of(plan, safe), abs=slack(plan))
    for site, rows in plan.arms.groups():
        assert kept[rows].sum() >= plan.floors[site]
    for tied in plan.tied:
        counts = {int(kept[plan.arms.site == site].sum()) for site in tied.sites}
        assert len(counts) == 1, "tied sites keep one size"


def slack(plan: Plan) -> float:
    """What the last move may remove too much where arms of several costs are compared by cost."""
    (budget,) = plan.budgets
    largest = budget.cost[budget.candidates].max()
    return float(budget.by_cost * largest * max((len(tied.sites) for tied in plan.tied), default=1))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@given(scored(), st.floats(0.1, 0.9))
def test_a_removal_in_two_rounds_ends_where_one_does(made: tuple[list[Plan], np.ndarray], part: float) -> None:
    (plan, _), scores = made
    at_once, _ = plan.choose(scores, whole(plan.arms))
    half, _ = plan.choose(scores, whole(plan.arms), part)
    kept, removed = plan.choose(scores, half)
    assert not (kept & ~half).any() and not half[~kept & ~np.isin(np.arange(len(kept)), removed)].any()
    assert removed_of(plan, kept) == pytest.approx(removed_of(plan, at_once), abs=slack(plan))
    again, nothing = plan.choose(scores, at_once)
    assert len(nothing) == 0 and np.array_equal(again, at_once), "what is reached is not removed again"


@given(plans(), st.randoms(use_true_random=False))
def test_sizes_along_one_order_are_nested_and_rounded(made: list[Plan], random: object) -> None:
    order = np.arange(len(made[0].arms))
    random.shuffle(order)  # type: ignore[attr-defined]
    large, small = (Selection.along(plan, order, multiple=1, min_neurons=1).kept for plan in made)
    assert not (small & ~large).any()
    arms = made[0].arms
    multiple = 2 * int(arms.units.max())
    rounded = Selection.along(made[0], order, multiple, min_neurons=1).kept
    for site, rows in arms.groups():
        if made[0].layout == "per_layer" and arms.kind[rows[0]] == "neuron":
            width = int(arms.units[rows[rounded[rows]]].sum())
            assert width % multiple == 0 or rounded[rows].all(), site


@given(plans(), st.integers(0, 99))
def test_random_draws_follow_the_plan(made: list[Plan], seed: int) -> None:
    plan, everything = made[0], whole(made[0].arms)
    drawn = Selection(plan, everything, 1, 1).random(seed).kept
    expected, _ = plan.choose(np.zeros(len(everything)), everything)
    assert removed_of(plan, drawn) == pytest.approx(removed_of(plan, expected), abs=slack(plan))
    assert all(drawn[rows].sum() >= plan.floors[site] for site, rows in plan.arms.groups())
