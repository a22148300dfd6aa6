"""Sites that keep one size while others stand alone, as experts of a layer do: by hand, and against brute force."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from hf_mabprune.arms import ArmTable, Bools, Ints
from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.selected import Selection
from hf_mabprune.selection.target import Limits, make_plan, reach
from tests.problems import limits, table, whole
from tests.seeds import moved
from tests.selection.removals import TOTALS, removed

# Two layers of two experts each, of three blocks, and a layer of one plain FFN; arms 0 to 2, 3 to 5, and so on.
LAYERS = {"neuron.0": "a", "neuron.1": "a", "neuron.2": "b", "neuron.3": "b"}


def tied(arms: ArmTable, ties: dict[str, str], sizes: dict[str, Any] | None = None, neurons: int = 1) -> Limits:
    return replace(limits(arms, neurons=neurons), ties=ties, sizes=sizes or {})


def moves_of(plan: Plan, scores: list[float]) -> list[list[int]]:
    """Arms of each move, safest first."""
    arms, number = plan.moves(plan.budgets[0], np.array(scores), whole(plan.arms))
    assert (np.diff(number) >= 0).all()
    return [arms[number == each].tolist() for each in np.unique(number)]


MIXED = table(neurons=[[8] * 3] * 5, parameters=(2, 1))
MIXED_SCORES = [
    5.0, 1.0, 0.0,  # with the next: 5 and 3, then 1 and 2
    2.0, 3.0, -1.0,
    -4.0, 9.0, 8.0,  # with the next: 9 and 1, then 8 and 0
    0.0, 1.0, -2.0,
    4.5, 1.6, 7.0,  # alone
]  # fmt: skip


@pytest.mark.parametrize("target", [{"neurons": 0.5}, {"parameters": 0.1}])
def test_single_arms_and_steps_of_tied_sites_go_by_their_mean(target: dict[str, float]) -> None:
    plan = make_plan(MIXED, TargetConfig(**target), TOTALS, "per_layer", tied(MIXED, LAYERS))
    # 7, then 5 = (9 + 1) / 2, 4.5, 4 = (5 + 3) / 2 and (8 + 0) / 2, 1.5 = (1 + 2) / 2
    assert moves_of(plan, MIXED_SCORES) == [[14], [7, 10], [12], [0, 4], [8, 9], [1, 3]]


def test_steps_are_compared_with_single_arms_by_cost() -> None:
    arms = table(neurons=[[8] * 3] * 2, heads=[[2] * 3], parameters=(4, 1))
    plan = make_plan(
        arms, TargetConfig(parameters=0.1), TOTALS, "per_layer", tied(arms, {"neuron.0": "a", "neuron.1": "a"})
    )
    # Harm per parameter: a step (1 + 3) / 8 = 0.5, then (3 + 5) / 8 = 1; heads 0.4, 0.75.
    scores = [-1.0, -3.0, -9.0, -3.0, -5.0, -9.0, -0.4, -0.75, -9.0]
    assert moves_of(plan, scores) == [[6], [0, 3], [7], [1, 4]]


def test_a_later_step_never_goes_before_an_earlier_one() -> None:
    arms = table(neurons=[[8] * 4] * 3)
    plan = make_plan(
        arms, TargetConfig(neurons=0.5), TOTALS, "per_layer",
        tied(arms, {"neuron.0": "a", "neuron.1": "a"}, {"a": {8, 24}}),
    )  # fmt: skip
    # The first step leaves 24 of 32, the next 8: its mean can be no larger, as rows are sorted.
    scores = [1.0, 4.0, 3.0, 0.0, 9.0, 1.0, 8.0, 0.0, 3.0, 2.0, 5.0, 1.0]
    assert plan.tied[0].steps == (3, 1)
    assert moves_of(plan, scores) == [[1, 4], [10], [2, 0, 6, 5], [8], [9]]


def test_experts_of_a_layer_keep_one_width_and_layers_differ() -> None:
    plan = make_plan(MIXED, TargetConfig(neurons=0.4), TOTALS, "per_layer", tied(MIXED, LAYERS))
    assert removed(plan, MIXED_SCORES) == [14, 7, 10, 12, 0, 4]
    keep = MIXED.kept_units(~np.isin(np.arange(15), removed(plan, MIXED_SCORES)))
    assert [len(units) for units in keep.values()] == [16, 16, 16, 16, 8]


def test_an_even_plan_takes_steps_and_single_arms_in_turn() -> None:
    plan = make_plan(MIXED, TargetConfig(neurons=0.5), TOTALS, "per_layer", tied(MIXED, LAYERS))
    assert moves_of(replace(plan, even=True), MIXED_SCORES) == [[14], [7, 10], [0, 4], [12], [8, 9], [1, 3]]


def test_a_floor_holds_for_the_tied_and_those_alone() -> None:
    bounds = tied(MIXED, LAYERS, neurons=16)
    plan = make_plan(MIXED, TargetConfig(neurons=0.3), TOTALS, "per_layer", bounds)
    assert moves_of(plan, MIXED_SCORES) == [[14], [7, 10], [0, 4]]
    assert [each.steps for each in plan.tied] == [(2,), (2,)]


@pytest.mark.parametrize(("sizes", "steps"), [({16}, (2,)), ({8}, (1,)), ({8, 12}, (1,)), (range(24), (2, 1))])
def test_steps_are_the_sizes_that_are_allowed(sizes: Any, steps: tuple[int, ...]) -> None:
    plan = make_plan(MIXED, TargetConfig(neurons=0.4), TOTALS, "per_layer", tied(MIXED, LAYERS, {"a": sizes}))
    assert [each.steps for each in plan.tied] == [steps, (2, 1)]


def test_arms_without_evidence_go_last_with_all_of_their_step() -> None:
    plan = make_plan(MIXED, TargetConfig(neurons=0.5), TOTALS, "per_layer", tied(MIXED, LAYERS))
    scores = np.array(MIXED_SCORES)
    scores[[0, 1, 7, 12]] = -np.inf
    assert moves_of(plan, scores.tolist()) == [[14], [8, 10], [13], [2, 4], [6, 9], [0, 3]]


def test_ties_that_cannot_hold_are_refused() -> None:
    target = TargetConfig(neurons=0.5)
    uneven = table(neurons=[[8] * 3, [8] * 4])
    with pytest.raises(ValueError, match=r"the experts of a layer .* equal size, but their neurons differ"):
        make_plan(uneven, target, TOTALS, "per_layer", tied(uneven, dict.fromkeys(["neuron.0", "neuron.1"], "a")))
    blocks = table(neurons=[[8, 8, 4]] * 2)
    with pytest.raises(ValueError, match=r"the experts of a layer need blocks of equal size, .* 20 neurons is small"):
        make_plan(blocks, target, TOTALS, "per_layer", tied(blocks, dict.fromkeys(["neuron.0", "neuron.1"], "a")))
    make_plan(blocks, target, TOTALS, "per_layer", tied(blocks, {}))


def test_targets_out_of_the_reach_of_steps_name_one_that_is_not() -> None:
    arms = table(neurons=[[8] * 4] * 4)
    ties = {"neuron.0": "a", "neuron.1": "a", "neuron.2": "b", "neuron.3": "b"}
    bounds = tied(arms, ties, {"a": {16}, "b": {16}})
    assert reach(arms, TOTALS, "per_layer", bounds)["neurons"] == 0.5
    with pytest.raises(ValueError, match=r"target.neurons 0.8 cannot be met .*; the nearest that can is 0.5$"):
        make_plan(arms, TargetConfig(neurons=0.8), TOTALS, "per_layer", bounds)
    plan = make_plan(arms, TargetConfig(neurons=0.5), TOTALS, "per_layer", bounds)
    assert len(removed(plan, [0.0] * 16)) == 8
    plan = make_plan(arms, TargetConfig(neurons=0.25), TOTALS, "per_layer", bounds)
    assert removed(plan, [*[0.0] * 8, *[1.0] * 8]) == [8, 9, 12, 13]


def experts(layers: int, count: int) -> ArmTable:
    """Whole experts as arms: one router a layer."""
    arms = table(heads=[[1] * count] * layers)
    return replace(arms, kind=np.array(["expert"] * len(arms)))


def test_whole_experts_are_counted_and_a_router_keeps_as_many_as_it_sends_to() -> None:
    arms = experts(2, 4)
    bounds = Limits({"head.0": 2, "head.1": 2})
    plan = make_plan(arms, TargetConfig(experts=0.5), TOTALS, "per_layer", bounds)
    assert plan.budgets[0].name == "experts" and plan.budgets[0].total == 8
    assert removed(plan, [9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]) == [0, 1, 7, 6]
    assert reach(arms, TOTALS, "per_layer", bounds)["experts"] == 0.5
    with pytest.raises(ValueError, match=r"target.experts 0.75 cannot be met .* nearest that can is 0.5$"):
        make_plan(arms, TargetConfig(experts=0.75), TOTALS, "per_layer", bounds)


def test_parts_are_what_can_lose_more_than_the_rest() -> None:
    plan = make_plan(MIXED, TargetConfig(neurons=0.4), TOTALS, "per_layer", tied(MIXED, LAYERS))
    assert [rows.tolist() for rows in plan.parts()] == [[*range(6)], [*range(6, 12)], [12, 13, 14]]
    plan = make_plan(MIXED, TargetConfig(neurons=0.4), TOTALS, "uniform", limits(MIXED, layout="uniform"))
    assert [rows.tolist() for rows in plan.parts()] == [[*range(start, start + 3)] for start in range(0, 15, 3)]


def test_what_is_left_of_a_plan_keeps_its_ties() -> None:
    plan = make_plan(MIXED, TargetConfig(neurons=0.5), TOTALS, "per_layer", tied(MIXED, LAYERS))
    scores = np.array(MIXED_SCORES)
    half, _ = plan.choose(scores, whole(MIXED), 0.5)
    rows = np.flatnonzero(half)
    left = table(neurons=[[8] * int(half[own].sum()) for _, own in MIXED.groups()], parameters=(2, 1))
    rest = plan.restricted(left, rows, 1.0)
    kept, _ = rest.choose(scores[rows], whole(left))
    at_once, _ = plan.choose(scores, whole(MIXED))
    assert rows[kept].tolist() == np.flatnonzero(at_once).tolist()


@pytest.mark.parametrize("multiple", [1, 16])
def test_selections_leave_tied_sites_equal(multiple: int) -> None:
    arms = table(neurons=[[8] * 8] * 5)
    sizes = {tie: range(multiple, 64, multiple) for tie in "ab"}
    plan = make_plan(arms, TargetConfig(neurons=0.4), TOTALS, "per_layer", tied(arms, LAYERS, sizes))
    order = np.random.default_rng(moved(4)).permutation(len(arms))
    along = Selection.along(plan, order, multiple, 1)
    for selection in (along, along.random(0), along.random(1)):
        widths = [len(units) for units in arms.kept_units(selection.kept).values()]
        assert widths[0] == widths[1] and widths[2] == widths[3]
        assert all(width % multiple == 0 for width in widths)
        assert abs(sum(widths) - 0.6 * 5 * 64) <= max(8, multiple) + multiple / 2  # half a move, and the rounding


def one_after_the_other(plan: Plan, scores: np.ndarray) -> list[Ints]:
    """Moves as somebody would make them who looks at what can go next, takes the best, and looks again."""
    budget, rows = plan.budgets[0], dict(plan.arms.groups())
    kept: Bools = whole(plan.arms)
    together = {site for tied in plan.tied for site in tied.sites}

    def left(site: str) -> Ints:
        own = rows[site][kept[rows[site]]]
        return own[np.argsort(-scores[own])]

    taken = []
    while True:
        options = [left(site)[:1] for site in rows if site not in together and len(left(site)) > plan.floors[site]]
        for each in plan.tied:
            now = len(left(each.sites[0]))
            if lower := [size for size in each.steps if size < now]:
                options.append(np.concatenate([left(site)[: now - max(lower)] for site in each.sites]))
        if not options:
            return taken
        per = budget.cost if budget.by_cost else np.ones(len(scores))
        taken.append(max(options, key=lambda arms: scores[arms].sum() / per[arms].sum()))
        kept[taken[-1]] = False


@pytest.mark.parametrize("target", [{"neurons": 0.3}, {"parameters": 0.3}])
@pytest.mark.parametrize("allowed", [None, {6, 12, 15}])
def test_moves_are_those_of_one_decision_after_the_other(target: dict[str, float], allowed: set[int] | None) -> None:
    heads = [] if "neurons" in target else [[2] * 3] * 2
    arms = table(neurons=[[3] * 6] * 5, heads=heads, parameters=(3, 5))
    for seed in range(10):
        rng = np.random.default_rng(moved(seed))
        sizes = {"a": allowed, "b": allowed} if allowed else None
        totals = {"parameters": int(arms.parameters.sum()), "macs": 1}
        plan = make_plan(arms, TargetConfig(**target), totals, "per_layer", tied(arms, LAYERS, sizes))
        scores = rng.normal(size=len(arms))
        expected = one_after_the_other(plan, scores)
        found = moves_of(plan, scores.tolist())
        assert [sorted(move) for move in found] == [sorted(move.tolist()) for move in expected]


def test_no_other_sizes_with_as_many_arms_gone_are_safer() -> None:
    arms = table(neurons=[[4] * 5] * 6)
    ties = {f"neuron.{site}": "abc"[site // 2] for site in range(6)}
    for seed in range(10):
        scores = np.random.default_rng(moved(seed)).normal(size=len(arms))
        plan = make_plan(arms, TargetConfig(neurons=0.4), TOTALS, "per_layer", tied(arms, ties))
        gone = removed(plan, scores.tolist())
        assert len(gone) == 12
        safest = [np.sort(scores[rows])[::-1] for _, rows in arms.groups()]
        best = max(
            sum(safest[site][: counts[site // 2]].sum() for site in range(6))
            for counts in product(range(5), repeat=3)
            if 2 * sum(counts) == 12
        )
        assert scores[gone].sum() == pytest.approx(best)


def test_the_reach_of_costs_is_not_said_where_arms_hold_arms() -> None:
    neurons, routers = table(neurons=[[8] * 4] * 2), experts(1, 4)
    columns = ([getattr(part, name) for part in (neurons, routers)] for name in ArmTable.__dataclass_fields__)
    both = ArmTable(*map(np.concatenate, columns))
    assert set(reach(neurons, TOTALS, "per_layer", limits(neurons))) == {"parameters", "macs", "neurons"}
    assert set(reach(both, TOTALS, "per_layer", limits(both))) == {"experts", "neurons"}
