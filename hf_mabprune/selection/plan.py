"""Scores + costs + target -> which arms stay. Pure: arrays in, arrays out.

A plan is made, and refused if it cannot be met, before any compute is spent. Scores are rewards: the arm with the
highest score goes first. Under a budget in parameters or MACs, arms go by score per unit of cost. Removal goes on from
what is already removed, so every smaller model is nested in the larger ones.
Symbols: K arms; a move is a set of arms that go together: one arm under `per_layer`, the same number of arms from
every layer under `uniform`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import TargetConfig

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Site = tuple[str, int]  # kind, layer


@dataclass(frozen=True)
class Budget:
    """One quantity to remove.

    Attributes:
        name: What the target calls it: neurons, heads, parameters or macs.
        candidates: [c], arms that count towards it.
        cost: [K], what each arm contributes.
        total: What there is of it in the whole model.
        amount: How much of it has to go.
        by_cost: Arms are compared by score per cost, and the amount is reached or passed; else it is rounded to.
    """

    name: str
    candidates: Ints
    cost: Floats
    total: float
    amount: float
    by_cost: bool


@dataclass(frozen=True)
class Plan:
    """What a target asks of a model, checked to be within reach. Made by `make_plan`.

    Attributes:
        floors: Site -> number of arms that must stay.
        steps: kind -> numbers of arms that every layer may keep under `uniform`, from many to few.
    """

    arms: ArmTable
    layout: Literal["uniform", "per_layer"]
    budgets: tuple[Budget, ...]
    floors: dict[Site, int]
    steps: dict[str, tuple[int, ...]]

    def choose(self, scores: Floats, kept: Bools, progress: float = 1.0) -> tuple[Bools, Ints]:
        """Removes arms, safest first, until `progress` of every budget is spent.

        Args:
            scores: [K], higher = safer to remove.
            kept: [K], arms that are still there.
            progress: Part of the whole target to reach, in (0, 1].

        Returns:
            kept, [K], and the arms removed in this call, safest first.
        """
        kept, removed = kept.copy(), [np.empty(0, dtype=np.int64)]
        for budget in self.budgets:
            arms, moves = self._moves(budget, scores, kept)
            costs = np.bincount(moves, budget.cost[arms])
            gone = budget.cost[budget.candidates].sum() - budget.cost[budget.candidates[kept[budget.candidates]]].sum()
            passed = gone + np.cumsum(costs) - (costs if budget.by_cost else costs / 2)
            taken = arms[moves < np.sum(passed < budget.amount * progress - 1e-9 * budget.total)]
            kept[taken] = False
            removed.append(taken)
        return kept, np.concatenate(removed)

    def restricted(self, arms: ArmTable, rows: Ints, progress: float) -> "Plan":
        """What is left to do once other arms are gone for good, until `progress` of every budget is spent.

        Args:
            arms: [k], those that are left, as a model has them that was cut.
            rows: [k], which of this plan's arms they are.
            progress: Part of this plan's target, in (0, 1].
        """
        left = np.isin(np.arange(len(self.arms)), rows)
        budgets = []
        for budget in self.budgets:
            candidates = np.flatnonzero(np.isin(rows, budget.candidates))
            gone = float(budget.cost[budget.candidates[~left[budget.candidates]]].sum())
            amount = budget.amount * progress - gone
            budgets.append(replace(budget, candidates=candidates, cost=budget.cost[rows], amount=amount))
        return replace(self, arms=arms, budgets=tuple(budgets))

    def cost(self) -> Floats:
        """[K], what scores are divided by before arms are compared; ones where they are compared as they are."""
        return self.budgets[0].cost if self.budgets[0].by_cost else np.ones(len(self.arms))

    def _moves(self, budget: Budget, scores: Floats, kept: Bools) -> tuple[Ints, Ints]:
        """What can go next, safest first. The floor of each site protects its least safe arms.

        Returns:
            Arms, and for each the number of the move that it is part of.
        """
        alive = np.zeros(len(self.arms), dtype=bool)
        alive[budget.candidates] = kept[budget.candidates]
        sites = {}
        for kind, layer, rows in self.arms.groups():
            rows = rows[alive[rows]]
            sites[kind, layer] = rows[np.argsort(-scores[rows], kind="stable")]
        if self.layout == "uniform":
            return self._uniform_moves(budget, scores, sites)
        arms = np.concatenate([rows[: max(len(rows) - self.floors[site], 0)] for site, rows in sites.items()])
        value = scores[arms] / budget.cost[arms] if budget.by_cost else scores[arms]
        return arms[np.argsort(-value, kind="stable")], np.arange(len(arms))

    def _uniform_moves(self, budget: Budget, scores: Floats, sites: dict[Site, Ints]) -> tuple[Ints, Ints]:
        """Steps down to the next allowed size, in all layers at once; kinds compete by value, each in its order."""
        queues = []
        for kind, steps in self.steps.items():
            layers = [rows for (found, _), rows in sites.items() if found == kind]
            if layers:
                now = len(layers[0])
                bounds = [0, *(now - size for size in steps if size < now)]
                queues.append([np.concatenate([rows[a:b] for rows in layers]) for a, b in pairwise(bounds)])
        moves = [np.empty(0, dtype=np.int64)]
        while queues := [queue for queue in queues if queue]:
            values = [scores[queue[0]].sum() / budget.cost[queue[0]].sum() for queue in queues]
            moves.append(queues[int(np.argmax(values))].pop(0))
        return np.concatenate(moves), np.repeat(np.arange(len(moves) - 1), [len(move) for move in moves[1:]])


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
        arms: All arms.
        target: Fractions to remove.
        totals: `parameters` and `macs` of the whole model.
        layout: Under `uniform`, every layer loses the same number of arms of a kind.
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
    """Quantity -> the largest fraction of it that can be removed; arguments as those of `make_plan`.

    Raises:
        ValueError: If the arms do not allow the layout.
    """
    bounds = _bounds(arms, layout, min_units, sizes)
    everything = np.ones(len(arms), dtype=bool)
    largest = {}
    targets = [TargetConfig(parameters=0.5), TargetConfig(macs=0.5)]
    targets += [TargetConfig(**{f"{kind}s": 0.5}) for kind in np.unique(arms.kind)]
    for budget in (budget for target in targets for budget in _budgets(arms, target, totals)):
        going, _ = Plan(arms, layout, (budget,), *bounds)._moves(budget, np.zeros(len(arms)), everything)
        largest[budget.name] = float(budget.cost[going].sum() / budget.total)
    return largest


def _bounds(
    arms: ArmTable, layout: str, min_units: dict[str, int], sizes: dict[str, set[int]] | None
) -> tuple[dict[Site, int], dict[str, tuple[int, ...]]]:
    """Floors and steps of a plan."""
    floors = {  # sorted, since the arms that stay may be the small ones
        (kind, layer): max(1, int(np.searchsorted(np.cumsum(np.sort(arms.units[rows])), min_units[kind]) + 1))
        for kind, layer, rows in arms.groups()
    }
    steps: dict[str, tuple[int, ...]] = {}
    if layout == "uniform":
        steps = {kind: _uniform_steps(arms, kind, floors, (sizes or {}).get(kind)) for kind in np.unique(arms.kind)}
    return floors, steps


def round_widths(arms: ArmTable, order: Ints, kept: Bools, multiple: int, min_units: int = 1) -> Bools:
    """Moves each layer's number of kept neurons to a multiple, up or down, so that their sum changes least.

    Args:
        order: [K], all arms, first removed first; decides which arms go or come back.
        kept: [K].
        multiple: Of neurons; layers whose width is not a multiple of it keep their remainder when they stay whole.
    """
    place = np.empty(len(arms), dtype=np.int64)
    place[order] = np.arange(len(arms))
    kept = kept.copy()
    surplus = 0.0  # neurons kept beyond what was asked for, carried from layer to layer
    for kind, _, rows in arms.groups():
        if kind == "neuron":
            wanted = arms.units[rows[kept[rows]]].sum()
            safest_last = rows[np.argsort(-place[rows])]
            widths = np.cumsum(arms.units[safest_last])
            enough = widths >= min(min_units, widths[-1])
            fits = np.flatnonzero(((widths % multiple == 0) | (widths == widths[-1])) & enough)
            choice = fits[np.argmin(np.abs(widths[fits] - (wanted - surplus)))]
            surplus += float(widths[choice] - wanted)
            kept[rows] = False
            kept[safest_last[: choice + 1]] = True
    return kept


def _uniform_steps(arms: ArmTable, kind: str, floors: dict[Site, int], sizes: set[int] | None) -> tuple[int, ...]:
    layers = [rows for found, _, rows in arms.groups() if found == kind]
    if len({tuple(arms.units[rows]) for rows in layers}) > 1:
        raise ValueError(f"layout uniform starts from layers of equal size, but their {kind}s differ: use per_layer")
    widths = np.cumsum(arms.units[layers[0]])
    if len(np.unique(arms.units[layers[0]])) > 1:
        raise ValueError(
            f"layout uniform needs blocks of equal size, but the last one of a layer's {widths[-1]} {kind}s is "
            "smaller: use a block_size that divides that number, or per_layer"
        )
    floor = max(count for (found, _), count in floors.items() if found == kind)
    counts = range(len(widths) - 1, floor - 1, -1)
    return tuple(count for count in counts if sizes is None or int(widths[count - 1]) in sizes)


def _budgets(arms: ArmTable, target: TargetConfig, totals: Mapping[str, int]) -> list[Budget]:
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
            arms, moves = plan._moves(budget, np.zeros(len(plan.arms)), everything)
            nearest = removed or float(budget.cost[arms[moves == 0]].sum())
            can = f"the nearest that can is {_rounded_down(nearest / budget.total):g}"
            remedy = can if nearest else "nothing can go: lower block_size, round_to, min_neurons or min_heads"
            raise ValueError(
                f"target.{budget.name} {budget.amount / budget.total:.3g} cannot be met in layout {plan.layout} with "
                f"these arms and floors; {remedy}"
            )


def _uniform_grain(plan: Plan, kind: str) -> int:
    """Arms of a kind that the smallest step between two allowed sizes removes."""
    layers = [rows for found, _, rows in plan.arms.groups() if found == kind]
    counts = [len(layers[0]), *plan.steps[kind]]
    return len(layers) * min((high - low for high, low in pairwise(counts)), default=1)


def _rounded_down(fraction: float) -> float:
    """To three digits, so that what a message names is within reach."""
    scale = 10.0 ** (2 - np.floor(np.log10(fraction))) if fraction > 0 else 1.0
    return float(np.floor(fraction * scale) / scale)
