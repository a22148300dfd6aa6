"""How much goes from which site, decided on the refitted model itself.

Costs of arms compare well within a site; between sites they do not, for the layers above make up for what a site
loses, or make it worse. So allocations are arms of their own. A pull of one makes the smaller model, refits it and
measures its KL divergence on held-out examples. What is pulled, in three stages:

- For each order of removal within sites: equal widths, the order's own costs over all sites, and what lies between.
- For the best order: how much each site bears, measured with that site alone cut, and trusted by degrees; more from
  below, from above, from the middle or from both ends; and, where kinds share a budget, more from one of them.
- Offspring of the best so far: random factors on the costs of some sites.

Each stage is a successive halving (Karnin, Koren & Somekh 2013): all its allocations see a quarter of the examples,
the better half of them sees half, the best quarter all. Comparisons are paired, on the same examples. In the end the
winner has to beat equal widths for certain, and in the mean on examples that none of this has seen; else equal widths
are taken.
Symbols: K arms; x share of a site that has gone.
"""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np

from hf_mabprune.compensation import Compensation, DenseReference, RefitCache, refit_all
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.selection.plan import Bools, Floats, Plan
from hf_mabprune.surgery.cut import cut

SHARES = (0.25, 0.5, 1.0)  # of the examples that allocations see in turn
APART = 3  # one held-out part in so many is for the last comparison alone
TRUST = (0.25, 0.5, 1.0)  # powers of what was measured of sites
SLOPE = 0.7  # logarithm of the largest factor of a shape by depth
BROOD = 8  # offspring of a generation
IDLE = 10  # generations in turn without anything new that end a search
STEPS = (0.7, 0.5, 0.35, 0.25)  # standard deviation of the logarithm of their factors, generation by generation
SURE = 1.0  # standard errors that the gain of offspring must exceed
CERTAIN = 1.64  # and that of the winner over equal widths: 95%, one-sided
RATIO = 30.0  # of a site's sensitivity to the mean, at most
SMALLEST = 1e-300


class Candidate(NamedTuple):
    """An allocation.

    Attributes:
        name: In a word or two.
        order: Number of the order within sites that it follows.
        scores: [K], higher = remove first.
        kept: [K], arms that stay.
    """

    name: str
    order: int
    scores: Floats
    kept: Bools


@dataclass
class Allocation:
    """A search over allocations under way. Every process of a launch does the same.

    Args:
        method: How what stays is refitted, but for what depends on the sites below.
        reference: The dense model and its data.
        trials: What is measured for a size at most, in passes over the held-out examples that choose.
        seed: Of the offspring.

    Attributes:
        scores: [K], the best ones found for the last size, higher = remove first.
        before, after: Mean KL divergence of the last size on all held-out examples, with equal widths and with the
            scores that were taken, in nats.
        taken: What was taken for the last size, in words.
        cost: Of all measurements; a set that was measured counts as a pull.
    """

    method: Compensation
    reference: DenseReference
    trials: int
    seed: int = 0
    scores: Floats = field(init=False)
    before: float = field(init=False)
    after: float = field(init=False)
    taken: str = field(default="", init=False)
    cost: Cost = field(default_factory=Cost, init=False)
    cache: RefitCache = field(init=False, repr=False)  # refits of sites
    _seen: dict[tuple[bytes, int], Floats] = field(default_factory=dict, init=False, repr=False)  # by set and part

    def __post_init__(self) -> None:
        self.cache = RefitCache(self.reference.outputs.reserve)
        self._method = replace(self.method, bottom_up=False, both_sides=False)  # one that depends on its site alone
        parts = np.random.default_rng(0).permutation(len(self.reference.held_out)).tolist()
        apart = len(parts) // APART
        self._apart, self._parts = parts[:apart] or parts, parts[apart:]

    @property
    def passes(self) -> float:
        """Over the examples that choose, for all sizes so far."""
        return len(self._seen) / len(self._parts)

    def run(self, plan: Plan, orders: Sequence[Floats], start: Bools) -> Iterator[None]:
        """Finds scores; yields after every set that it measures.

        Args:
            plan: Of one size.
            orders: Scores, [K] each, higher = remove first: an order within sites, and costs between them.
            start: [K], what a larger size has kept.
        """
        started, tokens = time.perf_counter(), self.reference.cost.forward_tokens
        made, end = _Candidates(plan, start), len(self._seen) + self.trials * len(self._parts)
        best = yield from self._halved(
            plan, [each for n, order in enumerate(orders) for each in made.between(n, order)]
        )
        order = orders[best.order]
        if made.several and len(self._seen) < end:
            bears = yield from self._sensitivities(plan, made, best.order, order)
            shaped = [*made.trusting(best.order, order, bears), *made.shaped(best.order, order)]
            best = yield from self._halved(plan, [best, *shaped])
            best = yield from self._offspring(plan, made, best, end)
        yield from self._settle(plan, made.equal(best.order, order), best)
        tokens = round(self.reference.cost.forward_tokens - tokens)
        self.cost += Cost(forward_tokens=tokens, seconds=time.perf_counter() - started)

    def summary(self) -> str:
        """What it did, in half a sentence."""
        return (
            f"{self.cost.pulls} allocations measured: held-out KL {self.before:.4g} with equal widths -> "
            f"{self.after:.4g}"
        )

    def _halved(self, plan: Plan, candidates: Sequence[Candidate]) -> Generator[None, None, Candidate]:
        """Gives the best of some allocations; those that fall behind see fewer examples."""
        alive = list({each.kept.tobytes(): each for each in reversed(candidates)}.values())[::-1]
        for share in SHARES:
            parts = self._parts[: math.ceil(share * len(self._parts))]
            for each in alive:
                yield from self._measure(plan, each.kept, parts)
            alive.sort(key=lambda each: self._mean(each.kept, parts))
            if share < 1:
                alive = alive[: math.ceil(len(alive) / 2)]
        return alive[0]

    def _sensitivities(
        self, plan: Plan, made: "_Candidates", number: int, order: Floats
    ) -> Generator[None, None, Floats]:
        """[parts], the divergence with each part of the plan cut alone, as much as equal widths would have it."""
        equal, found = made.equal(number, order).kept, []
        parts = self._parts[: math.ceil(SHARES[0] * len(self._parts))]
        for rows in plan.parts():
            kept = made.start.copy()
            kept[rows] = equal[rows]
            if kept.all():
                found.append(np.nan)
                continue
            yield from self._measure(plan, kept, parts)
            found.append(self._mean(kept, parts))
        return np.array(found)

    def _offspring(
        self, plan: Plan, made: "_Candidates", best: Candidate, end: int
    ) -> Generator[None, None, Candidate]:
        """Goes on with random changes of the best, from coarse to fine, until so much was seen, or nothing is new."""
        rng, idle = np.random.default_rng(self.seed), 0
        for step in chain(STEPS, repeat(STEPS[-1])):
            known = len(self._seen)
            if known >= end or idle == IDLE:
                break
            brood = [made.changed(best, rng, step) for _ in range(BROOD)]
            child = yield from self._halved(plan, brood)
            before, after = (self._all(each.kept, self._parts) for each in (best, child))
            if _gain(before, after) > SURE:
                best = child
            idle = idle + 1 if len(self._seen) == known else 0
        return best

    def _settle(self, plan: Plan, equal: Candidate, best: Candidate) -> Iterator[None]:
        """Takes the best where it beats equal widths: for certain on all held-out examples, and in the mean on those
        that it was not chosen by."""
        for each in (equal, best):
            yield from self._measure(plan, each.kept, [*self._apart, *self._parts])
        everything = list(range(len(self.reference.held_out)))
        certain = _gain(*(self._all(each.kept, everything) for each in (equal, best))) > CERTAIN
        fresh = _gain(*(self._all(each.kept, self._apart) for each in (equal, best))) > 0
        chosen = best if certain and fresh else equal
        self.scores, self.taken = chosen.scores, chosen.name
        self.before, self.after = (self._mean(each.kept, everything) for each in (equal, chosen))

    def _measure(self, plan: Plan, kept: Bools, parts: Sequence[int]) -> Iterator[None]:
        """Divergences of a set, refitted, on some held-out parts: into `_seen`."""
        key = kept.tobytes()
        todo = [part for part in parts if (key, part) not in self._seen]
        if not todo:
            return
        keep = plan.arms.kept_units(kept)
        small = cut(self.reference.model, keep, plan.layout, passing=True)
        refit_all(self._method, self.reference, small, keep, self.cache)
        for part, found in zip(todo, self.reference.divergences_of(small, todo), strict=True):
            self._seen[key, part] = found
        self.cost += Cost(pulls=1)
        yield

    def _all(self, kept: Bools, parts: Sequence[int]) -> Floats:
        """Divergences of a set on some parts, an example each."""
        return np.concatenate([self._seen[kept.tobytes(), part] for part in parts])

    def _mean(self, kept: Bools, parts: Sequence[int]) -> float:
        """Their mean; infinite where one is not finite, or where there is none."""
        found = self._all(kept, parts)
        return float(np.nan_to_num(found, nan=np.inf).mean()) if len(found) else np.inf


@dataclass
class _Candidates:
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

    def equal(self, number: int, order: Floats) -> Candidate:
        """Equal widths: each arm costs what share of its part is gone with it."""
        return self._made("equal widths", number, self._shares(order))

    def between(self, number: int, order: Floats) -> list[Candidate]:
        """From equal widths to the order's own costs, over all sites."""
        shares, own = self._shares(order), np.maximum(-order, SMALLEST)
        mixed = [(f"{power:g} of its costs", shares ** (1 - power) * own**power) for power in (0.5, 1.0)]
        return [self.equal(number, order), *(self._made(name, number, costs) for name, costs in mixed)]

    def trusting(self, number: int, order: Floats, bears: Floats) -> list[Candidate]:
        """Equal widths, but for how much each part bears, [parts]."""
        typical = np.exp(np.nanmean(np.log(np.maximum(bears, SMALLEST))))
        ratio = np.nan_to_num(bears / typical, nan=1.0).clip(1 / RATIO, RATIO)
        shares = self._shares(order)
        return [
            self._made(f"{power:g} of measured sensitivities", number, self._scaled(shares, ratio**power))
            for power in TRUST
        ]

    def shaped(self, number: int, order: Floats) -> list[Candidate]:
        """Equal widths, but for depth; and for kind, where kinds share a budget."""
        place = np.empty(len(self.parts))  # from -1, the first of its kind, to 1, the last
        for kind in set(self.kind):
            own = np.array([other == kind for other in self.kind])
            place[own] = np.linspace(-1, 1, own.sum())
        shapes = {"more from below": place, "more from above": -place}
        shapes |= {"more from the middle": 2 * np.abs(place) - 1, "more from both ends": 1 - 2 * np.abs(place)}
        if len(set(self.kind)) > 1 and len(self.plan.budgets) == 1:
            sign = np.array([1.0 if kind == self.kind[0] else -1.0 for kind in self.kind])
            shapes |= {f"fewer of kind {self.kind[0]}": sign, f"more of kind {self.kind[0]}": -sign}
        shares = self._shares(order)
        return [
            self._made(name, number, self._scaled(shares, np.exp(SLOPE * shape))) for name, shape in shapes.items()
        ]

    def changed(self, best: Candidate, rng: np.random.Generator, step: float) -> Candidate:
        """An offspring: the costs of about a third of the parts change by random factors, of one at least."""
        change = rng.normal(0, step, len(self.parts)) * (rng.random(len(self.parts)) < 1 / 3)
        change[rng.integers(len(self.parts))] = rng.normal(0, step)
        name = best.name if best.name.endswith("changed") else f"{best.name}, changed"
        return self._made(name, best.order, self._scaled(-best.scores, np.exp(change)))

    def _made(self, name: str, number: int, costs: Floats) -> Candidate:
        return Candidate(name, number, -costs, self.plan.choose(-costs, self.start)[0])

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


def _gain(before: Floats, after: Floats) -> float:
    """By how many standard errors of their paired differences divergences fell, an example each.

    Where the outputs of either model are not finite, the one with more such examples is worse.
    """
    finite, finite_before = (int(np.isfinite(values).sum()) for values in (after, before))
    if not finite == finite_before == len(before):
        return np.inf if finite > finite_before else -np.inf
    difference = before - after
    if len(difference) < 2 or not difference.any():
        return 0.0
    return float(difference.mean() / max(difference.std(ddof=1) / np.sqrt(len(difference)), SMALLEST))
