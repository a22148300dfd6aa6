"""Decides which arms stay, from scores, costs and what a target asks. Pure: arrays in, arrays out.

A plan says how much of which quantity has to go; `selection.target` makes it. Scores are rewards: the arm with the
highest score goes first. Under a budget in parameters or MACs, arms go by score per unit of cost. Removal goes on from
what is already removed, so every smaller model is nested in the larger ones.
Symbols: K arms; a move is a set of arms that go together: one arm under `per_layer`, the same number of arms from
every layer under `uniform`.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.arms import ArmTable

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Site = tuple[str, int]  # kind, layer


@dataclass(frozen=True)
class Budget:
    """One quantity that a target removes a part of: neurons, heads, parameters or MACs.

    Attributes:
        name: Name in the target: neurons, heads, parameters or macs.
        candidates: [c], arms that count towards it.
        cost: [K], units, parameters or MACs that each arm contributes.
        total: Units, parameters or MACs of the dense model.
        amount: Units, parameters or MACs that have to go.
        by_cost: Whether arms are compared by score per cost, and the amount is reached or passed; else arms are
            compared as they are, and the amount is rounded to.
    """

    name: str
    candidates: Ints
    cost: Floats
    total: float
    amount: float
    by_cost: bool


@dataclass(frozen=True)
class Plan:
    """What a target asks of a model, checked to be within reach. Made by `target.make_plan`.

    Attributes:
        arms: All arms of the model.
        layout: Whether every layer loses the same number of arms of a kind.
        budgets: Quantities to remove, in the order in which they are spent.
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
            arms, moves = self.moves(budget, scores, kept)
            costs = np.bincount(moves, budget.cost[arms])
            gone = budget.cost[budget.candidates].sum() - budget.cost[budget.candidates[kept[budget.candidates]]].sum()
            # A move is taken while the amount is not reached without it, or, rounded, without half of it.
            passed = gone + np.cumsum(costs) - (costs if budget.by_cost else costs / 2)
            taken = arms[moves < np.sum(passed < budget.amount * progress - 1e-9 * budget.total)]
            kept[taken] = False
            removed.append(taken)
        return kept, np.concatenate(removed)

    def restricted(self, arms: ArmTable, rows: Ints, progress: float) -> "Plan":
        """Says what is left to do once other arms are gone for good, until `progress` of every budget is spent.

        Args:
            arms: [k], arms that are left, as a model has them that was cut.
            rows: [k], places of those among this plan's arms.
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
        """Gives what scores are divided by before arms are compared, [K]; ones where they are compared as they are."""
        return self.budgets[0].cost if self.budgets[0].by_cost else np.ones(len(self.arms))

    def moves(self, budget: Budget, scores: Floats, kept: Bools) -> tuple[Ints, Ints]:
        """Lists what can go next, safest first. The floor of each site protects its least safe arms.

        Args:
            budget: Quantity that counts.
            scores: [K], higher = safer to remove.
            kept: [K], arms that are still there.

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
        """Steps down to the next allowed size in all layers at once; kinds compete by value, each in its order."""
        queues = []
        for kind, steps in self.steps.items():
            layers = [rows for site, rows in sites.items() if site[0] == kind]
            if layers:
                now = len(layers[0])
                bounds = [0, *(now - size for size in steps if size < now)]
                queues.append([np.concatenate([rows[a:b] for rows in layers]) for a, b in pairwise(bounds)])
        moves = [np.empty(0, dtype=np.int64)]
        while queues := [queue for queue in queues if queue]:
            values = [scores[queue[0]].sum() / budget.cost[queue[0]].sum() for queue in queues]
            moves.append(queues[int(np.argmax(values))].pop(0))
        return np.concatenate(moves), np.repeat(np.arange(len(moves) - 1), [len(move) for move in moves[1:]])
