"""Plans worked out by hand: which arms go, in what order, and which targets are refused."""

import re
from collections.abc import Sequence

import numpy as np
import pytest

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.rounding import round_widths
from hf_mabprune.selection.target import make_plan
from tests.seeds import moved

ONE = {"neuron": 1, "head": 1}
TOTALS = {"parameters": 100, "macs": 200}


def table(
    neurons: Sequence[Sequence[int]] = (),
    heads: Sequence[Sequence[int]] = (),
    parameters: tuple[int, int] = (1, 1),
    macs: tuple[int, int] = (1, 1),
) -> ArmTable:
    """Arms of the given units, layer by layer; costs are per arm, of neurons and of heads."""
    rows = []
    for kind, layers, cost, work in (
        ("neuron", neurons, parameters[0], macs[0]),
        ("head", heads, parameters[1], macs[1]),
    ):
        for layer, units in enumerate(layers):
            stops = np.cumsum(units)
            rows += [
                (kind, layer, index, stop - size, stop, cost, work)
                for index, (size, stop) in enumerate(zip(units, stops, strict=True))
            ]
    kind, *numbers = zip(*rows, strict=True)
    return ArmTable(np.array(kind), *(np.array(column, dtype=np.int64) for column in numbers))


def whole(arms: ArmTable) -> np.ndarray:
    return np.ones(len(arms), dtype=bool)


def removed(plan: Plan, scores: Sequence[float], progress: float = 1.0) -> list[int]:
    """Arms that go, in their order; what stays is checked to be the others."""
    kept, order = plan.choose(np.array(scores, dtype=float), whole(plan.arms), progress)
    assert sorted(order) == np.flatnonzero(~kept).tolist()
    return order.tolist()


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
    plan = make_plan(EIGHT, TargetConfig(neurons=fraction), TOTALS, "per_layer", ONE)
    assert removed(plan, EIGHT_SCORES) == expected


def test_the_floor_protects_the_least_safe_arms() -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=0.5), TOTALS, "per_layer", {"neuron": 16, "head": 1})
    assert removed(plan, EIGHT_SCORES) == [5, 0, 1, 4]


def test_a_floor_holds_when_the_small_last_block_stays() -> None:
    arms = table(neurons=[[8, 8, 4], [8, 8, 4]])
    plan = make_plan(arms, TargetConfig(neurons=0.4), TOTALS, "per_layer", {"neuron": 8, "head": 1})
    kept, _ = plan.choose(np.array([4.0, 3.0, 0.0, 2.0, 1.0, 0.0]), whole(arms))
    assert [int(arms.units[rows[kept[rows]]].sum()) for _, _, rows in arms.groups()] == [12, 12]


def test_neurons_and_heads_have_budgets_of_their_own() -> None:
    arms = table(neurons=[[8] * 4], heads=[[2] * 4])
    plan = make_plan(arms, TargetConfig(neurons=0.25, heads=0.5), TOTALS, "per_layer", ONE)
    assert removed(plan, [0.0, 1.0, 0.5, 0.2, 9.0, 8.0, 7.0, 6.0]) == [1, 4, 5]


def test_kinds_without_a_target_stay() -> None:
    arms = table(neurons=[[8] * 4], heads=[[2] * 4])
    plan = make_plan(arms, TargetConfig(heads=0.5), TOTALS, "per_layer", ONE)
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
    plan = make_plan(MIXED, TargetConfig(**target), TOTALS, "per_layer", ONE)
    assert removed(plan, MIXED_SCORES) == expected


def test_parts_of_a_budget() -> None:
    plan = make_plan(MIXED, TargetConfig(parameters=0.24), TOTALS, "per_layer", ONE)
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
def test_uniform_takes_as_many_from_every_layer(
    fraction: float, sizes: set[int] | None, expected: list[int]
) -> None:
    allowed = {"head": sizes} if sizes else None
    plan = make_plan(GROUPS, TargetConfig(heads=fraction), TOTALS, "uniform", ONE, allowed)
    assert removed(plan, GROUP_SCORES) == expected


def test_uniform_steps_are_the_sizes_that_the_family_allows() -> None:
    plan = make_plan(GROUPS, TargetConfig(heads=0.5), TOTALS, "uniform", {"head": 2}, {"head": {2, 4}})
    assert plan.steps == {"head": (2, 1)}
    plan = make_plan(GROUPS, TargetConfig(heads=0.5), TOTALS, "uniform", {"head": 4}, None)
    assert plan.steps == {"head": (3, 2)}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.02, [0, 3]), (0.04, [0, 3, 1, 4]), (0.05, [0, 3, 1, 4, 6, 8])],
)
def test_under_uniform_kinds_compete_step_by_step(fraction: float, expected: list[int]) -> None:
    # Harm per parameter: neurons 2 / 2, then 4 / 2; heads 18 / 8.
    arms = table(neurons=[[8] * 3] * 2, heads=[[2] * 2] * 2, parameters=(1, 4))
    plan = make_plan(arms, TargetConfig(parameters=fraction), TOTALS, "uniform", ONE)
    assert removed(plan, [-1.0, -2.0, -3.0, -1.0, -2.0, -3.0, -4.0, -9.0, -14.0, -20.0]) == expected


def random_problem(seed: int) -> tuple[ArmTable, np.random.Generator]:
    rng = np.random.default_rng(moved(seed))
    return table(neurons=[[4] * 10] * 3, heads=[[2] * 4] * 3, parameters=(3, 11), macs=(3, 17)), rng


TARGETS = [{"neurons": 0.6}, {"heads": 0.5}, {"neurons": 0.3, "heads": 0.5}, {"parameters": 0.6}, {"macs": 0.6}]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
def test_smaller_models_are_nested_in_larger_ones(layout: str, target: dict[str, float]) -> None:
    arms, rng = random_problem(1)
    plan = make_plan(arms, TargetConfig(**target), {"parameters": 222, "macs": 294}, layout, ONE)  # type: ignore[arg-type]
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
    plan = make_plan(arms, TargetConfig(**target), totals, "uniform", ONE, {"head": {4, 2}})
    kept, _ = plan.choose(rng.normal(size=len(arms)), whole(arms))
    keep = arms.kept_units(kept)
    assert len(set(keep.sizes("neuron").values())) == len(set(keep.sizes("head").values())) == 1
    assert set(keep.sizes("head").values()) <= {8, 4, 2}


def test_what_is_done_is_not_done_again() -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=0.5), TOTALS, "per_layer", ONE)
    kept, _ = plan.choose(np.array(EIGHT_SCORES), whole(EIGHT))
    again, order = plan.choose(np.array(EIGHT_SCORES), kept)
    assert np.array_equal(again, kept)
    assert len(order) == 0


def test_masks_and_scores_are_left_as_they_were() -> None:
    plan = make_plan(EIGHT, TargetConfig(neurons=0.5), TOTALS, "per_layer", ONE)
    scores, kept = np.array(EIGHT_SCORES), whole(EIGHT)
    plan.choose(scores, kept)
    assert kept.all() and scores.tolist() == EIGHT_SCORES


@pytest.mark.parametrize("target", [{"neurons": 0.5}, {"parameters": 0.04}])
def test_arms_without_evidence_go_last(target: dict[str, float]) -> None:
    scores = [-np.inf, -5.0, -np.inf, -6.0, -np.inf, -7.0, -8.0, -np.inf]
    plan = make_plan(EIGHT, TargetConfig(**target), TOTALS, "per_layer", ONE)
    assert removed(plan, scores) == [1, 3, 5, 6]
    plan = make_plan(EIGHT, TargetConfig(neurons=0.625), TOTALS, "per_layer", ONE)
    assert removed(plan, scores)[:4] == [1, 3, 5, 6]
    plan = make_plan(EIGHT, TargetConfig(**target), TOTALS, "uniform", ONE)
    assert removed(plan, scores) == [1, 5, 3, 6]


def test_a_kind_without_evidence_goes_after_the_other() -> None:
    arms = table(neurons=[[8] * 3] * 2, heads=[[2] * 3] * 2)
    plan = make_plan(arms, TargetConfig(parameters=0.04), TOTALS, "uniform", ONE)
    assert removed(plan, [-np.inf] * 6 + [-9.0] * 6) == [6, 9, 7, 10]


@pytest.mark.parametrize(
    ("target", "layout", "sizes", "nearest"),
    [
        ({"neurons": 0.9}, "per_layer", None, "0.833"),  # one of six blocks stays in every layer
        ({"neurons": 0.95}, "uniform", None, "0.833"),
        ({"neurons": 0.02}, "per_layer", None, "0.0833"),  # 0.24 of 12 blocks would round to none
        ({"heads": 0.25}, "uniform", {4, 2}, "0.5"),  # 8 heads, 4 or 2
        ({"heads": 0.3}, "uniform", {4, 2}, "0.5"),
        ({"heads": 0.95}, "per_layer", None, "0.75"),
        ({"parameters": 0.8}, "per_layer", None, "0.64"),  # 10 blocks of 4 and 6 groups of 4
        ({"macs": 0.9}, "uniform", None, "0.25"),
    ],
)
def test_targets_that_cannot_be_met_are_refused_and_the_nearest_named(
    target: dict[str, float], layout: str, sizes: set[int] | None, nearest: str
) -> None:
    arms = table(neurons=[[8] * 6] * 2, heads=[[2] * 4] * 2, parameters=(4, 4), macs=(2, 5))
    (name, value), *_ = target.items()

    def plan(fraction: float) -> Plan:
        allowed = {"head": sizes} if sizes else None
        return make_plan(arms, TargetConfig(**{name: fraction}), TOTALS, layout, ONE, allowed)  # type: ignore[arg-type]

    with pytest.raises(ValueError) as error:
        plan(value)
    assert str(error.value) == (
        f"target.{name} {value} cannot be met in layout {layout} with these arms and floors; "
        f"the nearest that can is {nearest}"
    )
    assert removed(plan(float(nearest)), [0.0] * len(arms))


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
@pytest.mark.parametrize("name", ["neurons", "heads", "parameters", "macs"])
def test_what_a_refusal_names_is_accepted(name: str, layout: str) -> None:
    arms = table(neurons=[[16] * 7] * 3, heads=[[3] * 4] * 3, parameters=(7, 31), macs=(5, 37))
    totals = {"parameters": 1789, "macs": 1361}
    refused = 0
    for value in (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99):
        try:
            make_plan(arms, TargetConfig(**{name: value}), totals, layout, ONE, {"head": {3, 9}})  # type: ignore[arg-type]
        except ValueError as error:
            nearest = float(re.findall(r"nearest that can is ([\d.e-]+)$", str(error))[0])
            make_plan(arms, TargetConfig(**{name: nearest}), totals, layout, ONE, {"head": {3, 9}})  # type: ignore[arg-type]
            refused += 1
    assert refused > 0


def test_widths_that_the_rounding_allows_are_near_enough() -> None:
    # 30% of 512 neurons is 153.6; widths are multiples of 64, so 128 go. Blocks alone would come nearer.
    arms = table(neurons=[[16] * 32] * 2)
    sizes = {"neuron": set(range(64, 512, 64))}
    plan = make_plan(arms, TargetConfig(neurons=0.3), TOTALS, "uniform", ONE, sizes)
    assert len(removed(plan, [0.0] * 64)) == 2 * 8


def test_uniform_needs_equal_layers_and_equal_blocks() -> None:
    target = TargetConfig(neurons=0.5)
    with pytest.raises(ValueError, match="layers of equal size, but their neurons differ: use per_layer"):
        make_plan(table(neurons=[[8] * 4, [8] * 3]), target, TOTALS, "uniform", ONE)
    with pytest.raises(ValueError, match="last one of a layer's 20 neurons is smaller: use a block_size that divides"):
        make_plan(table(neurons=[[8, 8, 4], [8, 8, 4]]), target, TOTALS, "uniform", ONE)
    plan = make_plan(table(neurons=[[8] * 4, [8] * 3]), TargetConfig(neurons=0.57), TOTALS, "per_layer", ONE)
    assert len(removed(plan, [0.0] * 7)) == 4


def test_many_single_neurons() -> None:
    layers, width = 10, 10_000
    arms = table(neurons=[[1] * width] * layers)
    scores = np.random.default_rng(moved(0)).normal(size=len(arms))
    plan = make_plan(arms, TargetConfig(neurons=0.3), TOTALS, "per_layer", ONE)
    kept, order = plan.choose(scores, whole(arms))
    assert np.array_equal(order, np.argsort(-scores)[:30_000])
    assert int(kept.sum()) == 70_000


# Round widths: two layers of eight blocks of 8; arms go in ascending order within each layer.
BLOCKS = table(neurons=[[8] * 8, [8] * 8])
ORDER = np.arange(16)


def kept_of(*counts: int) -> np.ndarray:
    """The last arms of each layer stay."""
    return np.concatenate([np.arange(8) >= 8 - count for count in counts])


@pytest.mark.parametrize(
    ("kept", "multiple", "min_units", "expected"),
    [
        ((3, 5), 16, 1, (2, 6)),  # 24 + 40: one goes down, the other up
        ((3, 5), 16, 32, (4, 4)),
        ((3, 3), 16, 1, (2, 4)),
        ((4, 2), 16, 1, (4, 2)),
        ((3, 5), 8, 1, (3, 5)),
        ((1, 1), 16, 1, (2, 2)),  # not to nothing
        ((3, 5), 32, 1, (4, 4)),
        ((8, 1), 64, 1, (8, 8)),
        ((3, 5), 16, 1000, (8, 8)),  # a floor above the width keeps the layer whole
    ],
)
def test_widths_move_to_multiples_and_keep_their_sum(
    kept: tuple[int, int], multiple: int, min_units: int, expected: tuple[int, int]
) -> None:
    rounded = round_widths(BLOCKS, ORDER, kept_of(*kept), multiple, min_units)
    assert np.array_equal(rounded, kept_of(*expected))


def test_the_arms_removed_last_come_back_first() -> None:
    order = np.array([3, 1, 0, 2, 7, 5, 4, 6])
    arms = table(neurons=[[8] * 8])
    kept = np.isin(np.arange(8), [4, 6, 5])
    assert np.flatnonzero(round_widths(arms, order, kept, 32)).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(round_widths(arms, order, kept, 16)).tolist() == [4, 6]


def test_a_whole_layer_keeps_its_remainder() -> None:
    arms = table(neurons=[[8, 8, 4], [8, 8, 4]])
    order = np.array([2, 1, 0, 5, 4, 3])
    kept = np.array([True, True, True, True, False, False])
    rounded = round_widths(arms, order, kept, 16)
    assert rounded.tolist() == [True, True, True, True, True, False]


def test_heads_are_not_rounded() -> None:
    arms = table(neurons=[[8] * 4], heads=[[2] * 4])
    kept = np.array([True, False, False, True, True, False, True, False])
    rounded = round_widths(arms, np.array([1, 2, 3, 0, 5, 7, 4, 6]), kept, 32)
    assert rounded.tolist() == [True, True, True, True, True, False, True, False]


@pytest.mark.parametrize("multiple", [4, 8, 12, 40])
def test_rounding_holds_for_any_selection(multiple: int) -> None:
    rng = np.random.default_rng(moved(multiple))
    arms = table(neurons=[[4] * 30] * 12)
    for _ in range(20):
        order = rng.permutation(len(arms))
        kept = np.ones(len(arms), dtype=bool)
        kept[order[: int(rng.integers(1, 200))]] = False
        rounded = round_widths(arms, order, kept, multiple, 4)
        sizes = arms.kept_units(rounded).sizes("neuron").values()
        assert all(size % multiple == 0 and size >= 4 for size in sizes)
        before, after = (sum(arms.kept_units(mask).sizes("neuron").values()) for mask in (kept, rounded))
        assert abs(after - before) <= multiple / 2
        place = np.argsort(order)
        for _, _, rows in arms.groups():
            gone, stay = rows[~rounded[rows]], rows[rounded[rows]]
            assert len(gone) == 0 or place[gone].max() < place[stay].min()
