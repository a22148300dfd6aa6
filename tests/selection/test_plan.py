"""Plans worked out by hand: which arms go, in what order, and which targets are refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, table, whole
from tests.seeds import moved
from tests.selection.removals import TOTALS, removed, steps_of

EIGHT = table(neurons=[[8] * 4, [8] * 4])
EIGHT_SCORES = [4.0, 3.0, 2.0, 1.0, 0.5, 8.0, 0.4, 0.3]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.25, [5, 0]),
        (0.3, [5, 0]),  # 2.4 of 8 arms: rounded
        (0.32, [5, 0, 1]),  # 2.56
        (0.5, [5, 0, 1, 2]),
        (0.75, [5, 0, 1, 2, 4, 6]),  # arm 3, safer than 4 and 6, is the last of its layer
    ],
)
def test_counts_go_by_score_and_leave_each_layer_its_floor(fraction: float, expected: list[int]) -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=fraction), TOTALS, "per_layer", limits(EIGHT))
    assert removed(plan, EIGHT_SCORES) == expected


def test_the_floor_protects_the_least_safe_arms() -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=0.5), TOTALS, "per_layer", limits(EIGHT, neurons=16))
    assert removed(plan, EIGHT_SCORES) == [5, 0, 1, 4]


def test_a_floor_holds_when_the_small_last_block_stays() -> None:
    arms = table(neurons=[[8, 8, 4], [8, 8, 4]])
    plan = make_plan(arms, TargetConfig(neurons=0.4), TOTALS, "per_layer", limits(arms, neurons=8))
    kept, _ = plan.choose(np.array([4.0, 3.0, 0.0, 2.0, 1.0, 0.0]), whole(arms))
    assert [int(arms.units[rows[kept[rows]]].sum()) for _, rows in arms.groups()] == [12, 12]


def test_neurons_and_heads_have_budgets_of_their_own() -> None:
    arms = table(neurons=[[8] * 4], heads=[[2] * 4])
    plan = make_plan(arms, TargetConfig(neurons=0.25, heads=0.5), TOTALS, "per_layer", limits(arms))
    assert removed(plan, [0.0, 1.0, 0.5, 0.2, 9.0, 8.0, 7.0, 6.0]) == [1, 4, 5]


def test_kinds_without_a_target_stay() -> None:
    arms = table(neurons=[[8] * 4], heads=[[2] * 4])
    plan = make_plan(arms, TargetConfig(heads=0.5), TOTALS, "per_layer", limits(arms))
    assert removed(plan, [9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0]) == [7, 6]


# Rewards are mostly negative: the harm of a removal. Harm per parameter of the arms 0 to 9:
# 0.5, 0.1, 0.3 | 0.2, 1.0, 0.4 | 0.15, 0.5 | 0.25, 1.0
MIXED = table(neurons=[[8] * 3] * 2, heads=[[2] * 2] * 2, parameters=(2, 8), macs=(2, 25))
MIXED_SCORES = [-1.0, -0.2, -0.6, -0.4, -2.0, -0.8, -1.2, -4.0, -2.0, -8.0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"parameters": 0.02}, [1]),
        ({"parameters": 0.12}, [1, 6, 3]),  # 2 + 8 + 2: exactly
        ({"parameters": 0.13}, [1, 6, 3, 8]),  # passed, not rounded
        ({"parameters": 0.24}, [1, 6, 3, 8, 2, 5]),  # 0 and 4 are the last of their layers
        ({"macs": 0.1}, [6]),  # harm per MAC: 0.048 for 6, 0.08 for 8, 0.1 for 1
        ({"macs": 0.255}, [6, 8, 1]),
    ],
)
def test_parameters_and_macs_go_by_score_per_cost(target: dict[str, float], expected: list[int]) -> None:
    plan = make_plan(MIXED, TargetConfig(**target), TOTALS, "per_layer", limits(MIXED))
    assert removed(plan, MIXED_SCORES) == expected


def test_parts_of_a_budget() -> None:
    plan = make_plan(MIXED, TargetConfig(parameters=0.24), TOTALS, "per_layer", limits(MIXED))
    assert removed(plan, MIXED_SCORES, 0.25) == [1, 6]
    assert removed(plan, MIXED_SCORES, 0.5) == [1, 6, 3]


GROUPS = table(heads=[[2] * 4, [2] * 4])
GROUP_SCORES = [1.0, 5.0, 3.0, 4.0, 9.0, 0.0, 8.0, 7.0]


@pytest.mark.parametrize(
    ("fraction", "sizes", "expected"),
    [
        (0.25, None, [1, 4]),
        (0.5, None, [1, 4, 3, 6]),
        (0.5, {2, 4}, [1, 3, 4, 6]),
        (0.75, {2, 4}, [1, 3, 4, 6, 2, 7]),
    ],
)
def test_uniform_takes_as_many_from_every_layer(fraction: float, sizes: set[int] | None, expected: list[int]) -> None:
    allowed = {"head": sizes} if sizes else None
    bounds = limits(GROUPS, layout="uniform", sizes=allowed)
    plan = make_plan(GROUPS, TargetConfig(heads=fraction), TOTALS, "uniform", bounds)
    assert removed(plan, GROUP_SCORES) == expected


def test_uniform_steps_are_the_sizes_that_the_family_allows() -> None:
    bounds = limits(GROUPS, heads=2, layout="uniform", sizes={"head": {2, 4}})
    plan = make_plan(GROUPS, TargetConfig(heads=0.5), TOTALS, "uniform", bounds)
    assert steps_of(plan) == {"head": (2, 1)}
    plan = make_plan(GROUPS, TargetConfig(heads=0.5), TOTALS, "uniform", limits(GROUPS, heads=4, layout="uniform"))
    assert steps_of(plan) == {"head": (3, 2)}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.02, [0, 3]), (0.04, [0, 3, 1, 4]), (0.05, [0, 3, 1, 4, 6, 8])],
)
def test_under_uniform_kinds_compete_step_by_step(fraction: float, expected: list[int]) -> None:
    # Harm per parameter: neurons 2 / 2, then 4 / 2; heads 18 / 8.
    arms = table(neurons=[[8] * 3] * 2, heads=[[2] * 2] * 2, parameters=(1, 4))
    plan = make_plan(arms, TargetConfig(parameters=fraction), TOTALS, "uniform", limits(arms, layout="uniform"))
    assert removed(plan, [-1.0, -2.0, -3.0, -1.0, -2.0, -3.0, -4.0, -9.0, -14.0, -20.0]) == expected


def random_problem(seed: int) -> tuple[ArmTable, np.random.Generator]:
    rng = np.random.default_rng(moved(seed))
    return table(neurons=[[4] * 10] * 3, heads=[[2] * 4] * 3, parameters=(3, 11), macs=(3, 17)), rng


TARGETS = [{"neurons": 0.6}, {"heads": 0.5}, {"neurons": 0.3, "heads": 0.5}, {"parameters": 0.6}, {"macs": 0.6}]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
def test_smaller_models_are_nested_in_larger_ones(layout: Any, target: dict[str, float]) -> None:
    arms, rng = random_problem(1)
    totals = {"parameters": 222, "macs": 294}
    plan = make_plan(arms, TargetConfig(**target), totals, layout, limits(arms, layout=layout))
    scores = rng.normal(size=len(arms))
    half, first = plan.choose(scores, whole(arms), 0.5)
    full, then = plan.choose(scores, half, 1.0)
    at_once, order = plan.choose(scores, whole(arms), 1.0)

    assert 0 < len(first) < len(first) + len(then)
    assert not (full & ~half).any()
    assert np.array_equal(full, at_once)
    assert sorted([*first, *then]) == sorted(order)
    other, _ = plan.choose(rng.normal(size=len(arms)), half, 1.0)
    assert not (other & ~half).any(), "what is gone stays gone, whatever the new scores say"
    for budget in plan.budgets:
        gone = budget.cost[budget.candidates[~other[budget.candidates]]].sum()
        assert gone >= budget.amount - (0 if budget.by_cost else budget.cost.max() * 1.5)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_uniform_layers_end_up_equal(target: dict[str, float]) -> None:
    arms, rng = random_problem(2)
    totals = {"parameters": 222, "macs": 294}
    bounds = limits(arms, layout="uniform", sizes={"head": {4, 2}})
    plan = make_plan(arms, TargetConfig(**target), totals, "uniform", bounds)
    kept, _ = plan.choose(rng.normal(size=len(arms)), whole(arms))
    sizes: dict[str, set[int]] = {}
    for site, units in arms.kept_units(kept).items():
        sizes.setdefault(site.partition(".")[0], set()).add(len(units))
    assert len(sizes["neuron"]) == len(sizes["head"]) == 1
    assert sizes["head"] <= {8, 4, 2}


def test_what_is_done_is_not_done_again() -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=0.5), TOTALS, "per_layer", limits(EIGHT))
    kept, _ = plan.choose(np.array(EIGHT_SCORES), whole(EIGHT))
    again, order = plan.choose(np.array(EIGHT_SCORES), kept)
    assert np.array_equal(again, kept)
    assert len(order) == 0


def test_masks_and_scores_are_left_as_they_were() -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=0.5), TOTALS, "per_layer", limits(EIGHT))
    scores, kept = np.array(EIGHT_SCORES), whole(EIGHT)
    plan.choose(scores, kept)
    assert kept.all() and scores.tolist() == EIGHT_SCORES


@pytest.mark.parametrize("target", [{"neurons": 0.5}, {"parameters": 0.04}])
def test_arms_without_evidence_go_last(target: dict[str, float]) -> None:
    scores = [-np.inf, -5.0, -np.inf, -6.0, -np.inf, -7.0, -8.0, -np.inf]
    plan = make_plan(EIGHT, TargetConfig(**target), TOTALS, "per_layer", limits(EIGHT))
    assert removed(plan, scores) == [1, 3, 5, 6]
    plan = make_plan(EIGHT, TargetConfig(neurons=0.625), TOTALS, "per_layer", limits(EIGHT))
    assert removed(plan, scores)[:4] == [1, 3, 5, 6]
    plan = make_plan(EIGHT, TargetConfig(**target), TOTALS, "uniform", limits(EIGHT, layout="uniform"))
    assert removed(plan, scores) == [1, 5, 3, 6]


def test_a_kind_without_evidence_goes_after_the_other() -> None:
    arms = table(neurons=[[8] * 3] * 2, heads=[[2] * 3] * 2)
    plan = make_plan(arms, TargetConfig(parameters=0.04), TOTALS, "uniform", limits(arms, layout="uniform"))
    assert removed(plan, [-np.inf] * 6 + [-9.0] * 6) == [6, 9, 7, 10]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.25, [5, 0]),
        (0.38, [5, 0, 1]),  # of the second arms, 1 at 3.0 and 4 at 0.5
        (0.5, [5, 0, 1, 4]),  # the ranking over both layers takes 2, at 2.0
        (0.75, [5, 0, 1, 4, 2, 6]),
    ],
)
def test_an_even_plan_takes_from_every_site_in_turn(fraction: float, expected: list[int]) -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=fraction), TOTALS, "per_layer", limits(EIGHT))
    assert removed(replace(plan, even=True), EIGHT_SCORES) == expected


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_an_even_plan_removes_as_much_and_sites_differ_by_one_arm_at_most(target: dict[str, float]) -> None:
    arms = table(neurons=[[8] * 7] * 3, heads=[[1] * 5] * 3, parameters=(3, 5), macs=(7, 2))
    totals = {"parameters": 160, "macs": 200}
    plan = make_plan(arms, TargetConfig(**target), totals, "per_layer", limits(arms))
    scores = np.random.default_rng(moved(0)).random(len(arms)) - 1
    even, _ = replace(plan, even=True).choose(scores, whole(arms))
    for kind in arms.kinds():
        left = [int(even[rows].sum()) for site, rows in arms.groups() if site.startswith(kind)]
        assert max(left) - min(left) <= 1
    for _, rows in arms.groups():  # within a site by score
        gone = rows[~even[rows]]
        assert set(gone) == set(rows[np.argsort(-scores[rows])][: len(gone)])
    other, _ = plan.choose(scores, whole(arms))
    for budget in plan.budgets:
        removed_by = [budget.cost[budget.candidates[~kept[budget.candidates]]].sum() for kept in (even, other)]
        assert max(removed_by) - min(removed_by) <= (budget.cost.max() if budget.by_cost else 0)


def test_an_even_plan_goes_on_from_what_is_gone() -> None:
    plan = replace(make_plan(EIGHT, TargetConfig(neurons=0.5), TOTALS, "per_layer", limits(EIGHT)), even=True)
    kept = whole(EIGHT)
    kept[[0, 1]] = False
    assert plan.choose(np.array(EIGHT_SCORES), kept)[1].tolist() == [5, 4]


def test_many_single_neurons() -> None:
    layers, width = 10, 10_000
    arms = table(neurons=[[1] * width] * layers)
    scores = np.random.default_rng(moved(0)).normal(size=len(arms))
    plan = make_plan(arms, TargetConfig(neurons=0.3), TOTALS, "per_layer", limits(arms))
    kept, order = plan.choose(scores, whole(arms))
    assert np.array_equal(order, np.argsort(-scores)[:30_000])
    assert int(kept.sum()) == 70_000
