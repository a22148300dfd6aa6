"""Allocations of one size: how much goes from which part of a plan, written as costs that removals go by.

A part is a site, or sites that keep one size. Where its floor is 0, it can go as a whole.
Symbols: K arms; x share of a site that has gone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hf_mabprune.selection.plan import Bools, Floats, Plan

EQUAL = "equal widths"
TRUST = (0.25, 0.5, 1.0)  # powers of what was measured of parts
SLOPE = 0.7  # logarithm of the largest factor of a shape by depth
RATIO = 30.0  # of a part's sensitivity to the mean, at most
FIRST = 1e-9  # factor of the costs of what goes before all else
TOGGLED = 0.5  # of offspring, where parts can go as a whole: how many let one go, or take one back
SMALLEST = 1e-300


class Candidate(NamedTuple):
    """An allocation.

    Attributes:
        name: In a word or two.
        order: Number of the order within sites that it follows.
        scores: [K], higher = remove first.
        kept: [K], arms that stay.
        emptied: Numbers of the parts that go as a whole, before all else.
    """

    name: str
    order: int
    scores: Floats
    kept: Bools
    emptied: tuple[int, ...] = ()


@dataclass
class Candidates:
    """Makes allocations of one size. Scores are minus the costs that removals go by, arm by arm.

    Args:
        plan: Of the size.
        start: [K], what a larger size has kept.
    """

    plan: Plan
    start: Bools

    def __post_init__(self) -> None:
        self.parts = self.plan.parts()
        self.kind = [str(self.plan.arms.kind[rows[0]]) for rows in self.parts]
        self.several = len(self.parts) > 1 and self.plan.layout != "uniform"
        floors = [self.plan.floors[str(self.plan.arms.site[rows[0]])] for rows in self.parts]
        self.can_go = [number for number in range(len(self.parts)) if self.several and not floors[number]]

    def equal(self, number: int, order: Floats) -> Candidate:
        """Equal widths: each arm costs what share of its part is gone with it."""
        return self._made(EQUAL, number, self._shares(order))

    def between(self, number: int, order: Floats) -> list[Candidate]:
        """From equal widths to the order's own costs, over all sites."""
        shares, own = self._shares(order), np.maximum(-order, SMALLEST)
        mixed = [(f"{power:g} of its costs", shares ** (1 - power) * own**power) for power in (0.5, 1.0)]
        return [self.equal(number, order), *(self._made(name, number, costs) for name, costs in mixed)]

    def without(self, emptied: Sequence[int]) -> Bools:
        """[K], all arms that there are but those of some parts."""
        kept = self.start.copy()
        for part in emptied:
            kept[self.parts[part]] = False
        return kept

    def within(self, emptied: Sequence[int]) -> bool:
        """Tells whether the plan lets these parts go, and all are there to go."""
        kept = self.without(emptied)
        there = all(self.start[self.parts[part]].any() for part in emptied)
        return there and all(self.plan.gone(budget, kept) <= budget.amount for budget in self.plan.budgets)

    def size(self, part: int) -> float:
        """Counts what goes with a part, keys and values that go with its last arm among it, in what the plan divides
        costs by."""
        budget = self.plan.budgets[0]
        if not budget.by_cost:
            return float(self.start[self.parts[part]].sum())
        return self.plan.gone(budget, self.without([part])) - self.plan.gone(budget, self.start)

    def emptying(self, number: int, order: Floats, emptied: Sequence[int]) -> list[Candidate]:
        """Some parts go as a whole; the rest goes evenly, from all other parts and from those alone that cannot go."""
        shares, whole = self._shares(order), f"{len(emptied)} as a whole"
        costs = self._scaled(shares, self._factors(emptied, FIRST))
        spared = self._scaled(costs, self._factors([part for part in self.can_go if part not in emptied], 1 / FIRST))
        made = [
            self._made(f"{whole}, {name}", number, each) for name, each in (("all", costs), ("the others", spared))
        ]
        return [each._replace(emptied=tuple(emptied)) for each in made]

    def trusting(self, base: Candidate, bears: Floats) -> list[Candidate]:
        """An allocation, but for how much each part bears, [parts]."""
        typical = np.exp(np.nanmean(np.log(np.maximum(bears, SMALLEST))))
        with np.errstate(invalid="ignore"):  # where nothing could be measured
            ratio = np.nan_to_num(bears / typical, nan=1.0).clip(1 / RATIO, RATIO)
        found = {f"{power:g} of measured sensitivities": ratio**power for power in TRUST}
        return [self._changed(base, _on_top(base, name), factors) for name, factors in found.items()]

    def by_kind(self, base: Candidate) -> list[Candidate]:
        """An allocation, but for how much goes of which kind, where kinds share a budget: more of one, or all that
        can before any other goes."""
        kinds = list(dict.fromkeys(self.kind)) if len(self.plan.budgets) == 1 else []
        if len(kinds) < 2:
            return []
        own = {kind: [part for part, other in enumerate(self.kind) if other == kind] for kind in kinds}
        ways = {"more of kind {}": math.exp(-2 * SLOPE), "kind {} before others": FIRST}
        return [
            self._changed(base, _on_top(base, way.format(kind)), self._factors(parts, factor))
            for kind, parts in own.items()
            for way, factor in ways.items()
        ]

    def shaped(self, base: Candidate) -> list[Candidate]:
        """An allocation, but for depth."""
        place = np.empty(len(self.parts))  # from -1, the first of its kind, to 1, the last
        for kind in set(self.kind):
            own = np.array([other == kind for other in self.kind])
            place[own] = np.linspace(-1, 1, own.sum())
        shapes = {"more from below": place, "more from above": -place}
        shapes |= {"more from the middle": 2 * np.abs(place) - 1, "more from both ends": 1 - 2 * np.abs(place)}
        return [self._changed(base, _on_top(base, name), np.exp(SLOPE * shape)) for name, shape in shapes.items()]

    def offspring(self, best: Candidate, rng: np.random.Generator, step: float) -> Candidate:
        """The costs of about a third of the parts change by random factors, of one at least; or one more part goes as
        a whole, or one fewer."""
        name = best.name if best.name.endswith("changed") else f"{best.name}, changed"
        if self.can_go and rng.random() < TOGGLED:
            return self._toggled(best, name, int(rng.choice(self.can_go)))
        change = rng.normal(0, step, len(self.parts)) * (rng.random(len(self.parts)) < 1 / 3)
        change[rng.integers(len(self.parts))] = rng.normal(0, step)
        return self._changed(best, name, np.exp(change))

    def _toggled(self, best: Candidate, name: str, part: int) -> Candidate:
        """Lets a part go as a whole, or takes it back; gives what it was given where the plan does not let it go."""
        back = part in best.emptied
        emptied = tuple(each for each in best.emptied if each != part) if back else (*best.emptied, part)
        if not self.within(emptied):
            return best
        factors = self._factors([part], 1 / FIRST if back else FIRST)
        return self._changed(best, name, factors)._replace(emptied=emptied)

    def _changed(self, base: Candidate, name: str, factors: Floats) -> Candidate:
        """An allocation with other costs of its parts, by factors, [parts]."""
        made = self._made(name, base.order, self._scaled(-base.scores, factors))
        return made._replace(emptied=base.emptied)

    def _made(self, name: str, number: int, costs: Floats) -> Candidate:
        return Candidate(name, number, -costs, self.plan.choose(-costs, self.start)[0])

    def _factors(self, parts: Sequence[int], factor: float) -> Floats:
        """[parts], a factor for some of them and 1 for the others."""
        factors = np.ones(len(self.parts))
        factors[list(parts)] = factor
        return factors

    def _scaled(self, costs: Floats, factors: Floats) -> Floats:
        costs = costs.copy()
        for rows, factor in zip(self.parts, factors, strict=True):
            costs[rows] *= factor
        return costs

    def _shares(self, order: Floats) -> Floats:
        """[K], the share of its site that is gone once an arm is, times what the plan divides costs by."""
        shares = np.empty(len(order))
        for _, rows in self.plan.arms.groups():
            turn = np.lexsort((-order[rows], self.start[rows]))  # what has gone comes first
            shares[rows[turn]] = np.arange(1, len(rows) + 1) / len(rows)
        return shares * self.plan.cost()


def _on_top(base: Candidate, name: str) -> str:
    """Names a change of an allocation; one of equal widths by itself."""
    return name if base.name == EQUAL else f"{base.name}, {name}"
