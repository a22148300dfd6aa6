"""Which targets can be met, and what is said of those that cannot."""

import re
from typing import Any

import pytest

from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, table
from tests.selection.removals import TOTALS, removed


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
    target: dict[str, float], layout: Any, sizes: set[int] | None, nearest: str
) -> None:
    arms = table(neurons=[[8] * 6] * 2, heads=[[2] * 4] * 2, parameters=(4, 4), macs=(2, 5))
    (name, value), *_ = target.items()

    def plan(fraction: float) -> Plan:
        bounds = limits(arms, layout=layout, sizes={"head": sizes} if sizes else None)
        return make_plan(arms, TargetConfig(**{name: fraction}), TOTALS, layout, bounds)

    with pytest.raises(ValueError) as error:
        plan(value)
    assert str(error.value) == (
        f"target.{name} {value} cannot be met in layout {layout} with these arms and floors; "
        f"the nearest that can is {nearest}"
    )
    assert removed(plan(float(nearest)), [0.0] * len(arms))


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
@pytest.mark.parametrize("name", ["neurons", "heads", "parameters", "macs"])
def test_what_a_refusal_names_is_accepted(name: str, layout: Any) -> None:
    arms = table(neurons=[[16] * 7] * 3, heads=[[3] * 4] * 3, parameters=(7, 31), macs=(5, 37))
    totals = {"parameters": 1789, "macs": 1361}
    bounds = limits(arms, layout=layout, sizes={"head": {3, 9}})
    refused = 0
    for value in (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99):
        try:
            make_plan(arms, TargetConfig(**{name: value}), totals, layout, bounds)
        except ValueError as error:
            nearest = float(re.findall(r"nearest that can is ([\d.e-]+)$", str(error))[0])
            make_plan(arms, TargetConfig(**{name: nearest}), totals, layout, bounds)
            refused += 1
    assert refused > 0


def test_widths_that_the_rounding_allows_are_near_enough() -> None:
    # 30% of 512 neurons is 153.6; widths are multiples of 64, so 128 go. Blocks alone would come nearer.
    arms = table(neurons=[[16] * 32] * 2)
    bounds = limits(arms, layout="uniform", sizes={"neuron": set(range(64, 512, 64))})
    plan = make_plan(arms, TargetConfig(neurons=0.3), TOTALS, "uniform", bounds)
    assert len(removed(plan, [0.0] * 64)) == 2 * 8


def test_uniform_needs_equal_layers_and_equal_blocks() -> None:
    def plan(neurons: list[list[int]], fraction: float, layout: Any) -> Plan:
        arms = table(neurons=neurons)
        return make_plan(arms, TargetConfig(neurons=fraction), TOTALS, layout, limits(arms, layout=layout))

    with pytest.raises(ValueError, match="layers of equal size, but their neurons differ: use per_layer"):
        plan([[8] * 4, [8] * 3], 0.5, "uniform")
    with pytest.raises(ValueError, match="last one of a layer's 20 neurons is smaller: use a block_size that divides"):
        plan([[8, 8, 4], [8, 8, 4]], 0.5, "uniform")
    assert len(removed(plan([[8] * 4, [8] * 3], 0.57, "per_layer"), [0.0] * 7)) == 4
