"""Decides which arms stay, from scores, costs and what a target asks. Pure: arrays in, arrays out.

A plan says how much of which quantity has to go; `selection.target` makes it. Scores are rewards: the arm with the
highest score goes first. Under a budget in parameters or MACs, arms go by score per unit of cost. Removal goes on from
what is already removed, so every smaller model is nested in the larger ones.
Symbols: K arms; a move is a set of arms that go together: one arm, or the same number of arms from all sites that keep
one size, which are all of a kind under `uniform`, and the experts of a layer always.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.arms import ArmTable

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


Unit = Literal["", "B", "ms"]


@dataclass(frozen=True)
class Budget:
    """One quantity that a target removes a part of: units of a kind, or a cost such as parameters, MACs or bytes.

    Attributes:
        name: Name in the target: neurons, heads, parameters, macs, ...
        candidates: [c], arms that count towards it.
        cost: [K], what each arm contributes, which arms are compared by.
        total: What the dense model has.
        amount: What has to go.
        by_cost: Whether arms are compared by score per cost, and the amount is reached or passed; else arms are
            compared as they are, and the amount is rounded to.
        besides: Name of a site -> [n + 1], for each number of its n arms that stay, what has gone beside the costs of
            the others: what goes with the last one alone, or the way from a straight line to what was measured.
        unit: Of all of these, `B` or `ms`; empty for what is counted.
        added: What a refit may add to a pruned model, which has to go as well.
    """

    name: str
    candidates: Ints
    cost: Floats
    total: float
    amount: float
    by_cost: bool
    besides: Mapping[str, Floats] = field(default_factory=dict)
    unit: Unit = ""
    added: float = 0.0


@dataclass(frozen=True)
class Tied:
    """Sites that keep the same number of arms.

    Attributes:
        sites: Their names.
        steps: Numbers of arms that each may keep, from many to few.
    """

    sites: tuple[str, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a target asks of a model, checked to be within reach. Made by `target.make_plan`.

    Attributes:
        arms: All arms of the model.
        layout: Of the checkpoint that it is for.
        budgets: Quantities to remove, in the order in which they are spent.
        floors: Name of a site -> number of arms that must stay.
        tied: Sites that keep the same number of arms; all others stand alone.
        even: Whether all sites of a kind lose the same number of arms, to within one, so that the amount stays what it
            is; scores then say which arms of a site go, and which sites lose the one more.
        multiples: Name of a site of heads -> units that what it keeps is a multiple of in the end; 1 where it is not
            there.
    """

    arms: ArmTable
    layout: Literal["uniform", "per_layer"]
    budgets: tuple[Budget, ...]
    floors: dict[str, int]
    tied: tuple[Tied, ...] = ()
    even: bool = False
    multiples: Mapping[str, int] = field(default_factory=dict)

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
            costs = np.bincount(moves, self._costs(budget, arms, kept))
            # A move is taken while the amount is not reached without it, or, rounded, without half of it.
            passed = self.gone(budget, kept) + np.cumsum(costs) - (costs if budget.by_cost else costs / 2)
            taken = arms[moves < np.sum(passed < budget.amount * progress - 1e-9 * budget.total)]
            kept[taken] = False
            removed.append(taken)
        return kept, np.concatenate(removed)

    def gone(self, budget: Budget, kept: Bools) -> float:
        """Counts what is gone of a quantity where some arms stay, [K]."""
        candidates = budget.candidates
        besides = sum(own[kept[rows].sum()] - own[len(rows)] for rows, own in self._besides(budget))
        return float(budget.cost[candidates].sum() - budget.cost[candidates[kept[candidates]]].sum() + besides)

    def left(self, budget: Budget, kept: Bools) -> float:
        """Counts what is left of a quantity where some arms stay, [K], with what a refit may add."""
        return budget.total + budget.added - self.gone(budget, kept)

    def _costs(self, budget: Budget, arms: Ints, kept: Bools) -> Floats:
        """Counts what goes with each of some arms, in their order, from where some stay, [K]."""
        costs = budget.cost[arms].copy()
        for rows, own in self._besides(budget):
            places = np.flatnonzero((arms >= rows[0]) & (arms <= rows[-1]))
            costs[places] += np.diff(own[kept[rows].sum() - np.arange(len(places) + 1)])
        return costs

    def _besides(self, budget: Budget) -> list[tuple[Ints, Floats]]:
        """Lists the arms of the sites with which more goes than the costs of arms, or less, and how much that is."""
        return [(rows, budget.besides[site]) for site, rows in self.arms.groups() if site in budget.besides]

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
            amount = budget.amount * progress - self.gone(budget, left)
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
        for site, rows in self.arms.groups():
            rows = rows[alive[rows]]
            sites[site] = rows[np.argsort(-scores[rows], kind="stable")]
        together = {site for tied in self.tied for site in tied.sites}
        alone = [rows[: max(len(rows) - self.floors[site], 0)] for site, rows in sites.items() if site not in together]
        singles = np.concatenate([np.empty(0, dtype=np.int64), *alone])
        values = [scores[singles] / budget.cost[singles] if budget.by_cost else scores[singles]]
        moves = []
        for tied in self.tied:
            steps = self._steps_down(tied, sites)
            own = [scores[step].sum() / (budget.cost[step].sum() if budget.by_cost else len(step)) for step in steps]
            values.append(np.minimum.accumulate([np.inf, *own])[1:])  # a step comes after those before it
            moves += steps
        harm = -np.concatenate(values)
        safest = np.lexsort((harm, self._shares_gone(sites))) if self.even else np.argsort(harm, kind="stable")
        rank = np.argsort(safest)
        sizes = [1] * len(singles) + [len(move) for move in moves]
        arms, number = np.concatenate([singles, *moves]), np.repeat(rank, sizes)
        order = np.argsort(number, kind="stable")
        return arms[order], number[order]

    def _steps_down(self, tied: Tied, sites: dict[str, Ints]) -> list[Ints]:
        """Lists what goes with each step to the next allowed size, at all sites at once.

        Args:
            tied: Sites that keep one size.
            sites: Name -> arms that are left, safest first.
        """
        rows = [sites[site] for site in tied.sites if site in sites]
        now = len(rows[0]) if rows else 0
        bounds = [0, *(now - size for size in tied.steps if size < now)]
        return [np.concatenate([own[a:b] for own in rows]) for a, b in pairwise(bounds)]

    def _shares_gone(self, sites: dict[str, Ints]) -> Floats:
        """Gives the share of its site that is gone after each move: of single arms, then of steps of tied sites.

        Args:
            sites: Name -> arms that are left.
        """
        now = {site: len(rows) for site, rows in sites.items()}
        together = {site for tied in self.tied for site in tied.sites}
        left: dict[str, Sequence[int]] = {
            site: range(now[site] - 1, self.floors[site] - 1, -1) for site in sites if site not in together
        }
        left |= {tied.sites[0]: [size for size in tied.steps if size < now[tied.sites[0]]] for tied in self.tied}
        whole = {site: len(rows) for site, rows in self.arms.groups()}
        return np.array([1 - count / whole[site] for site, counts in left.items() for count in counts])

    def parts(self) -> list[Ints]:
        """Lists the arms of all that can lose more or less than the rest: of a site, or of sites that a layer ties."""
        if self.layout == "uniform":
            return [rows for _, rows in self.arms.groups()]
        tie = {site: number for number, tied in enumerate(self.tied) for site in tied.sites}
        found: dict[str | int, list[Ints]] = {}
        for site, rows in self.arms.groups():
            found.setdefault(tie.get(site, site), []).append(rows)
        return [np.concatenate(rows) for rows in found.values()]
