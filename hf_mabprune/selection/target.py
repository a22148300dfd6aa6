"""From a target to a plan: budgets and floors, and what is out of reach refused before any compute is spent.

Pure: arrays in, arrays out.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

import numpy as np

from hf_mabprune.arms import ArmTable, Ints
from hf_mabprune.config import Amount, TargetConfig, in_units, in_words
from hf_mabprune.selection.plan import Budget, Floats, Plan, Tied, Unit

Layout = Literal["uniform", "per_layer"]
PRINTED = ("parameters", "macs")  # of what is counted: how much can go of it


@dataclass(frozen=True)
class Quantity:
    """A cost that a target removes a part of.

    Attributes:
        total: What the dense model has of it.
        cost: [K], what goes with each arm, as far as that does not depend on how many go.
        parameter: What goes with a parameter that `Limits.last` counts.
        besides, unit, added: As those of `Budget`.
    """

    total: float
    cost: Floats
    parameter: float = 0.0
    besides: Mapping[str, Floats] = field(default_factory=dict)
    unit: Unit = ""
    added: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What bounds a plan beside its target.

    Attributes:
        min_units: Name of a site -> units that it keeps at least.
        ties: Name of a site -> what it keeps one size with others for; sites that stand alone are not there.
        sizes: The same ties -> units that their sites may keep; those that are not there may keep any number.
        last: Name of a site -> parameters that go besides with its last unit.
        multiples: Name of a site of heads -> units that what it keeps is a multiple of; 1 where it is not there.
    """

    min_units: Mapping[str, int]
    ties: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Container[int]] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)


def make_plan(
    arms: ArmTable,
    target: TargetConfig,
    totals: Mapping[str, int],
    layout: Layout,
    limits: Limits,
    measured: Mapping[str, Quantity] = MappingProxyType({}),
) -> Plan:
    """Turns a target into budgets and floors, and refuses what is out of reach.

    Args:
        arms: All arms of the model.
        target: What to remove.
        totals: `parameters`, `ffn_parameters`, `attention_parameters`, `macs` and `layers` of the dense model, as far
            as the target is of them.
        layout: Layout of the checkpoint.
        limits: What sites may keep.
        measured: Further quantities, by the names that targets have for them.

    Raises:
        ValueError: If the target cannot be met, with the nearest one that can.
    """
    floors, tied = _bounds(arms, layout, limits)
    costs = {**counted(arms, totals), **measured}
    budgets = [
        _of_cost(arms, name, costs[name], amount, limits.last)
        if name in costs
        else _of_units(arms, name, amount, totals)
        for name, amount in target.amounts().items()
    ]
    plan = Plan(arms, layout, tuple(budgets), floors, tied, multiples=limits.multiples)
    _check_reach(plan, target)
    return plan


def counted(arms: ArmTable, totals: Mapping[str, int]) -> dict[str, Quantity]:
    """Gives the quantities that follow from a table of arms: parameters of all or of the layers, and MACs; as far as
    totals are known."""
    sums = {
        "parameters": ("parameters",),
        "layer_parameters": ("ffn_parameters", "attention_parameters"),
        "macs": ("macs",),
    }
    return {
        name: Quantity(
            float(sum(totals[part] for part in parts)),
            (arms.macs if name == "macs" else arms.parameters).astype(float),
            float(name != "macs"),
        )
        for name, parts in sums.items()
        if totals.keys() >= {*parts}
    }


def reach(
    arms: ArmTable,
    totals: Mapping[str, int],
    layout: Layout,
    limits: Limits,
    measured: Mapping[str, Quantity] = MappingProxyType({}),
) -> dict[str, float]:
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
    costs = {} if overlap else {name: cost for name, cost in counted(arms, totals).items() if name in PRINTED}
    budgets = [_of_cost(arms, name, cost, 0.5, limits.last) for name, cost in {**costs, **measured}.items()]
    budgets += [_of_units(arms, f"{kind}s", 0.5, totals) for kind in sorted(arms.kinds())]
    for budget in budgets:
        plan = Plan(arms, layout, (budget,), *bounds)
        going, _ = plan.moves(budget, np.zeros(len(arms)), everything)
        largest[budget.name] = (plan.gone(budget, ~np.isin(np.arange(len(arms)), going)) - budget.added) / budget.total
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


def _of_cost(arms: ArmTable, name: str, quantity: Quantity, amount: Amount, last: Mapping[str, float]) -> Budget:
    """Turns an amount of a cost into what has to go; `last` is that of `Limits`, of parameters alone."""
    total, besides = quantity.total, dict(quantity.besides)
    if quantity.parameter:
        for site, rows in arms.groups():
            if site in last:
                with_last = np.zeros(len(rows) + 1)
                with_last[0] = quantity.parameter * last[site]
                besides[site] = besides.get(site, 0.0) + with_last
    goes = amount * total if isinstance(amount, float) else max(total - in_units(amount), 0.0)
    everything = np.arange(len(arms))
    return Budget(
        name, everything, quantity.cost, total, goes + quantity.added, True, besides, quantity.unit, quantity.added
    )


def _of_units(arms: ArmTable, name: str, amount: Amount, totals: Mapping[str, int]) -> Budget:
    """Turns a fraction of units of a kind into the number that has to go."""
    rows, units = arms.of_kind(name.removesuffix("s")), arms.units.astype(float)
    total = float(totals.get(name, units[rows].sum()))
    return Budget(name, rows, units, total, float(amount) * total, False)


def _check_reach(plan: Plan, target: TargetConfig) -> None:
    """Raises ValueError where floors, layout or arms do not let the target be met, naming the nearest that can be."""
    everything = np.ones(len(plan.arms), dtype=bool)
    kept, _ = plan.choose(np.zeros(len(plan.arms)), everything)
    for budget in plan.budgets:
        removed = plan.gone(budget, kept)
        grain = float(budget.cost[budget.candidates].max())
        if not budget.by_cost:
            grain *= _grain(plan, budget)
        too_little = budget.amount - (0 if budget.by_cost else grain / 2) - 1e-9 * budget.total
        too_much = np.inf if budget.by_cost else budget.amount + grain / 2
        if removed == 0 or removed < too_little or removed > too_much:
            arms, moves = plan.moves(budget, np.zeros(len(plan.arms)), everything)
            nearest = removed or float(budget.cost[arms[moves == 0]].sum())
            can = f"the nearest that can is {_nearest(budget, nearest - budget.added)}"
            remedy = can if nearest else "nothing can go: lower block_size, round_to, or the floors"
            asked = target.amounts()[budget.name]
            raise ValueError(
                f"target.{budget.name} {asked if isinstance(asked, str) else f'{asked:.3g}'} cannot be met in layout "
                f"{plan.layout} with these arms and floors; {remedy}"
            )


def _nearest(budget: Budget, gone: float) -> str:
    """Says how much of a quantity can go; of one with a unit, how much is left then, which is the floor."""
    fraction = f"{_rounded_down(gone / budget.total):g}"
    if not budget.unit:
        return fraction
    before, after = (in_words(value, budget.unit) for value in (budget.total, budget.total - gone))
    return f"{fraction}, from {before} to {after}"


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
