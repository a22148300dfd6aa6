"""From a target to a plan: budgets and floors, and what is out of reach refused before any compute is spent.

Pure: arrays in, arrays out.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from hf_mabprune.arms import ArmTable, Ints
from hf_mabprune.config import TargetConfig
from hf_mabprune.selection.plan import Budget, Plan, Tied

Layout = Literal["uniform", "per_layer"]
# A target of cost -> column of the arms that it counts, and the totals of the model that it is a fraction of.
COSTS = {
    "parameters": ("parameters", ("parameters",)),
    "layer_parameters": ("parameters", ("ffn_parameters", "attention_parameters")),
    "macs": ("macs", ("macs",)),
}


@dataclass(frozen=True)
class Limits:
    """What bounds a plan beside its target.

    Attributes:
        min_units: Name of a site -> units that it keeps at least.
        ties: Name of a site -> what it keeps one size with others for; sites that stand alone are not there.
        sizes: The same ties -> units that their sites may keep; those that are not there may keep any number.
        last: Name of a site -> parameters that go besides with its last unit.
    """

    min_units: Mapping[str, int]
    ties: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Container[int]] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)


def make_plan(arms: ArmTable, target: TargetConfig, totals: Mapping[str, int], layout: Layout, limits: Limits) -> Plan:
    """Turns a target into budgets and floors, and refuses what is out of reach.

    Args:
        arms: All arms of the model.
        target: Fractions to remove.
        totals: `parameters`, `ffn_parameters`, `attention_parameters`, `macs` and `layers` of the dense model, as far
            as the target is of them.
        layout: Layout of the checkpoint.
        limits: What sites may keep.

    Raises:
        ValueError: If the target cannot be met, with the nearest one that can.
    """
    floors, tied = _bounds(arms, layout, limits)
    plan = Plan(arms, layout, tuple(_budgets(arms, target, totals, limits.last)), floors, tied)
    _check_reach(plan)
    return plan


def reach(arms: ArmTable, totals: Mapping[str, int], layout: Layout, limits: Limits) -> dict[str, float]:
    """Finds the largest fraction of each quantity that can be removed; arguments as those of `make_plan`.

    Returns:
        Quantity -> fraction; counts alone where some arms hold others.

    Raises:
        ValueError: If the arms do not allow the layout.
    """
    bounds = _bounds(arms, layout, limits)
    everything = np.ones(len(arms), dtype=bool)
    largest = {}
    overlap = {"neuron", "expert"} <= set(arms.kinds())  # experts hold neurons, whose cost would count twice
    targets = [] if overlap else [TargetConfig(parameters=0.5), TargetConfig(macs=0.5)]
    targets += [TargetConfig(**{f"{kind}s": 0.5}) for kind in sorted(arms.kinds())]
    for budget in (budget for target in targets for budget in _budgets(arms, target, totals, limits.last)):
        going, _ = Plan(arms, layout, (budget,), *bounds).moves(budget, np.zeros(len(arms)), everything)
        largest[budget.name] = float(budget.cost[going].sum() / budget.total)
    return largest


def _bounds(arms: ArmTable, layout: Layout, limits: Limits) -> tuple[dict[str, int], tuple[Tied, ...]]:
    """Works out floors and ties of a plan; raises ValueError where the arms do not allow the layout."""
    floors = {  # sorted, since the arms that stay may be the small ones
        site: int(np.searchsorted(np.cumsum([0, *np.sort(arms.units[rows])]), limits.min_units[site]))
        for site, rows in arms.groups()
    }
    ties: dict[str, list[str]] = {}
    for site in floors:
        if site in limits.ties:
            ties.setdefault(limits.ties[site], []).append(site)
    rows = dict(arms.groups())
    return floors, tuple(
        Tied(tuple(sites), _steps(arms, layout, {site: rows[site] for site in sites}, floors, limits.sizes.get(tie)))
        for tie, sites in ties.items()
    )


def _steps(
    arms: ArmTable, layout: Layout, sites: Mapping[str, Ints], floors: Mapping[str, int], sizes: Container[int] | None
) -> tuple[int, ...]:
    """Lists the numbers of arms that each of some sites may keep, from many to few."""
    first = next(iter(sites.values()))
    kind = str(arms.kind[first[0]])
    where = "layout uniform needs" if layout == "uniform" else "the experts of a layer need"
    other = ", or per_layer" if layout == "uniform" else ""
    if len({tuple(arms.units[rows]) for rows in sites.values()}) > 1:
        whose = "layout uniform starts from layers" if layout == "uniform" else "the experts of a layer must be"
        raise ValueError(f"{whose} of equal size, but their {kind}s differ{': use per_layer' if other else ''}")
    widths = np.cumsum(arms.units[first])
    if len(np.unique(arms.units[first])) > 1:
        raise ValueError(
            f"{where} blocks of equal size, but the last one of a layer's {widths[-1]} {kind}s is smaller: use a "
            f"block_size that divides that number{other}"
        )
    floor = max(floors[site] for site in sites)
    counts = range(len(widths) - 1, floor - 1, -1)
    return tuple(count for count in counts if sizes is None or int(widths[count - 1]) in sizes)


def _budgets(
    arms: ArmTable, target: TargetConfig, totals: Mapping[str, int], last: Mapping[str, float]
) -> list[Budget]:
    """Turns the fractions of a target into amounts; `last` is that of `Limits`, of parameters alone."""
    budgets = []
    everything = np.arange(len(arms))
    for name, fraction in target.fractions().items():
        if name in COSTS:
            cost = getattr(arms, COSTS[name][0]).astype(float)
            total = float(sum(totals[part] for part in COSTS[name][1]))
            besides = last if COSTS[name][0] == "parameters" else {}
            budgets.append(Budget(name, everything, cost, total, fraction * total, True, besides))
        else:
            rows, units = arms.of_kind(name.removesuffix("s")), arms.units.astype(float)
            total = float(totals.get(name, units[rows].sum()))
            budgets.append(Budget(name, rows, units, total, fraction * total, False))
    return budgets


def _check_reach(plan: Plan) -> None:
    """Raises ValueError where floors, layout or arms do not let the target be met, naming the nearest that can be."""
    everything = np.ones(len(plan.arms), dtype=bool)
    kept, _ = plan.choose(np.zeros(len(plan.arms)), everything)
    for budget in plan.budgets:
        removed = float(budget.cost[budget.candidates[~kept[budget.candidates]]].sum())
        grain = float(budget.cost[budget.candidates].max())
        if not budget.by_cost:
            grain *= _grain(plan, budget)
        too_little = budget.amount - (0 if budget.by_cost else grain / 2) - 1e-9 * budget.total
        too_much = np.inf if budget.by_cost else budget.amount + grain / 2
        if removed == 0 or removed < too_little or removed > too_much:
            arms, moves = plan.moves(budget, np.zeros(len(plan.arms)), everything)
            nearest = removed or float(budget.cost[arms[moves == 0]].sum())
            can = f"the nearest that can is {_rounded_down(nearest / budget.total):g}"
            remedy = can if nearest else "nothing can go: lower block_size, round_to, or the floors"
            raise ValueError(
                f"target.{budget.name} {budget.amount / budget.total:.3g} cannot be met in layout {plan.layout} with "
                f"these arms and floors; {remedy}"
            )


def _grain(plan: Plan, budget: Budget) -> int:
    """Counts the arms that the smallest step between two allowed sizes removes, where sites are tied."""
    sites, grain = set(plan.arms.site[budget.candidates].tolist()), 1
    rows = dict(plan.arms.groups())
    for tied in plan.tied:
        if sites.intersection(tied.sites):
            counts = [len(rows[tied.sites[0]]), *tied.steps]
            grain = max(grain, len(tied.sites) * min((high - low for high, low in pairwise(counts)), default=1))
    return grain


def _rounded_down(fraction: float) -> float:
    """Rounds to three digits, down, so that what a message names is within reach."""
    scale = 10.0 ** (2 - np.floor(np.log10(fraction))) if fraction > 0 else 1.0
    return float(np.floor(fraction * scale) / scale)
