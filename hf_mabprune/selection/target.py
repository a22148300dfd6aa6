"""From a target to a plan: budgets and floors, and what is out of reach refused before any compute is spent.

Pure: arrays in, arrays out.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.plan import Budget, Plan, Site


def make_plan(
    arms: ArmTable,
    target: TargetConfig,
    totals: Mapping[str, int],
    layout: Literal["uniform", "per_layer"],
    min_units: dict[str, int],
    sizes: dict[str, set[int]] | None = None,
) -> Plan:
    """Turns a target into budgets and floors, and refuses what is out of reach.

    Args:
        arms: All arms of the model.
        target: Fractions to remove.
        totals: `parameters` and `macs` of the dense model.
        layout: Layout of the checkpoint; under `uniform`, every layer loses the same number of arms of a kind.
        min_units: kind -> units that every layer keeps at least.
        sizes: kind -> units a layer may keep under `uniform`, where the family restricts them.

    Raises:
        ValueError: If the target cannot be met, with the nearest one that can.
    """
    floors, steps = _bounds(arms, layout, min_units, sizes)
    plan = Plan(arms, layout, tuple(_budgets(arms, target, totals)), floors, steps)
    _check_reach(plan)
    return plan


def reach(
    arms: ArmTable,
    totals: Mapping[str, int],
    layout: Literal["uniform", "per_layer"],
    min_units: dict[str, int],
    sizes: dict[str, set[int]] | None = None,
) -> dict[str, float]:
    """Finds the largest fraction of each quantity that can be removed; arguments as those of `make_plan`.

    Returns:
        Quantity -> fraction.

    Raises:
        ValueError: If the arms do not allow the layout.
    """
    bounds = _bounds(arms, layout, min_units, sizes)
    everything = np.ones(len(arms), dtype=bool)
    largest = {}
    targets = [TargetConfig(parameters=0.5), TargetConfig(macs=0.5)]
    targets += [TargetConfig(**{f"{kind}s": 0.5}) for kind in np.unique(arms.kind)]
    for budget in (budget for target in targets for budget in _budgets(arms, target, totals)):
        going, _ = Plan(arms, layout, (budget,), *bounds).moves(budget, np.zeros(len(arms)), everything)
        largest[budget.name] = float(budget.cost[going].sum() / budget.total)
    return largest


def _bounds(
    arms: ArmTable, layout: str, min_units: dict[str, int], sizes: dict[str, set[int]] | None
) -> tuple[dict[Site, int], dict[str, tuple[int, ...]]]:
    """Works out floors and steps of a plan; raises ValueError where the arms do not allow the layout."""
    floors = {  # sorted, since the arms that stay may be the small ones
        (kind, layer): max(1, int(np.searchsorted(np.cumsum(np.sort(arms.units[rows])), min_units[kind]) + 1))
        for kind, layer, rows in arms.groups()
    }
    steps: dict[str, tuple[int, ...]] = {}
    if layout == "uniform":
        steps = {kind: _uniform_steps(arms, kind, floors, (sizes or {}).get(kind)) for kind in np.unique(arms.kind)}
    return floors, steps


def _uniform_steps(arms: ArmTable, kind: str, floors: dict[Site, int], sizes: set[int] | None) -> tuple[int, ...]:
    """Lists the numbers of arms of a kind that every layer may keep, from many to few."""
    layers = [rows for site_kind, _, rows in arms.groups() if site_kind == kind]
    if len({tuple(arms.units[rows]) for rows in layers}) > 1:
        raise ValueError(f"layout uniform starts from layers of equal size, but their {kind}s differ: use per_layer")
    widths = np.cumsum(arms.units[layers[0]])
    if len(np.unique(arms.units[layers[0]])) > 1:
        raise ValueError(
            f"layout uniform needs blocks of equal size, but the last one of a layer's {widths[-1]} {kind}s is "
            "smaller: use a block_size that divides that number, or per_layer"
        )
    floor = max(count for site, count in floors.items() if site[0] == kind)
    counts = range(len(widths) - 1, floor - 1, -1)
    return tuple(count for count in counts if sizes is None or int(widths[count - 1]) in sizes)


def _budgets(arms: ArmTable, target: TargetConfig, totals: Mapping[str, int]) -> list[Budget]:
    """Turns the fractions of a target into amounts."""
    budgets = []
    everything = np.arange(len(arms))
    for name, fraction in target.fractions().items():
        if name in ("parameters", "macs"):
            cost = getattr(arms, name).astype(float)
            budgets.append(Budget(name, everything, cost, totals[name], fraction * totals[name], True))
        else:
            rows, units = arms.of_kind(name.removesuffix("s")), arms.units.astype(float)
            total = float(units[rows].sum())
            budgets.append(Budget(name, rows, units, total, fraction * total, False))
    return budgets


def _check_reach(plan: Plan) -> None:
    """Raises ValueError where floors, layout or arms do not let the target be met, naming the nearest that can be."""
    everything = np.ones(len(plan.arms), dtype=bool)
    kept, _ = plan.choose(np.zeros(len(plan.arms)), everything)
    for budget in plan.budgets:
        removed = float(budget.cost[budget.candidates[~kept[budget.candidates]]].sum())
        grain = float(budget.cost[budget.candidates].max())
        if plan.layout == "uniform" and not budget.by_cost:
            grain *= _uniform_grain(plan, str(plan.arms.kind[budget.candidates[0]]))
        too_little = budget.amount - (0 if budget.by_cost else grain / 2) - 1e-9 * budget.total
        too_much = np.inf if budget.by_cost else budget.amount + grain / 2
        if removed == 0 or removed < too_little or removed > too_much:
            arms, moves = plan.moves(budget, np.zeros(len(plan.arms)), everything)
            nearest = removed or float(budget.cost[arms[moves == 0]].sum())
            can = f"the nearest that can is {_rounded_down(nearest / budget.total):g}"
            remedy = can if nearest else "nothing can go: lower block_size, round_to, min_neurons or min_heads"
            raise ValueError(
                f"target.{budget.name} {budget.amount / budget.total:.3g} cannot be met in layout {plan.layout} with "
                f"these arms and floors; {remedy}"
            )


def _uniform_grain(plan: Plan, kind: str) -> int:
    """Counts the arms of a kind that the smallest step between two allowed sizes removes."""
    layers = [rows for site_kind, _, rows in plan.arms.groups() if site_kind == kind]
    counts = [len(layers[0]), *plan.steps[kind]]
    return len(layers) * min((high - low for high, low in pairwise(counts)), default=1)


def _rounded_down(fraction: float) -> float:
    """Rounds to three digits, down, so that what a message names is within reach."""
    scale = 10.0 ** (2 - np.floor(np.log10(fraction))) if fraction > 0 else 1.0
    return float(np.floor(fraction * scale) / scale)
