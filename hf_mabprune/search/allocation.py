"""How much goes from which site, decided on the refitted model itself.

Costs of arms compare well within a site; between sites they do not, for the layers above make up for what a site
loses, or make it worse. So allocations are arms of their own. A pull of one makes the smaller model, refits it and
measures its KL divergence on held-out examples. What is pulled, in stages:

- For each order of removal within sites: equal widths, the order's own costs over all sites, and what lies between.
- Where sites may be left with nothing: one whole site after the other, always the one that costs least with those
  before it gone, and for each number of them the rest evenly.
- For the best order, where kinds share a budget: more of one of them, or all that can of one before any other.
- For the best of these: how much each site bears, measured with that site alone cut, and trusted by degrees; more from
  below, from above, from the middle or from both ends.
- Offspring of the best so far: random factors on the costs of some sites. Only where it is ahead of equal widths:
  where nothing designed is, random changes are not either, and the time is better spent otherwise.

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

import numpy as np

from hf_mabprune.compensation import Compensation, DenseReference, RefitCache, refit_all
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.search.candidates import SMALLEST, Candidate, Candidates
from hf_mabprune.selection.plan import Bools, Floats, Plan
from hf_mabprune.surgery.cut import cut

SHARES = (0.25, 0.5, 1.0)  # of the examples that allocations see in turn
APART = 3  # one held-out part in so many is for the last comparison alone
LOOKS = 4  # parts that are looked at before one goes as a whole
BROOD = 8  # offspring of a generation
IDLE = 10  # generations in turn without anything new that end a search
STEPS = (0.7, 0.5, 0.35, 0.25)  # standard deviation of the logarithm of their factors, generation by generation
SURE = 1.0  # standard errors that the gain of offspring must exceed, and that of what they are bred from
CERTAIN = 1.64  # and that of the winner over equal widths: 95%, one-sided


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
        made, begun = Candidates(plan, start), len(self._seen)
        end = begun + self.trials * len(self._parts)
        best = yield from self._halved(
            plan, [each for n, order in enumerate(orders) for each in made.between(n, order)]
        )
        order = orders[best.order]
        equal = made.equal(best.order, order)
        if made.can_go and len(self._seen) < end:
            path = yield from self._emptied(plan, made, best, (begun + end) // 2)
            emptied = [each for n in range(len(path)) for each in made.emptying(best.order, order, path[: n + 1])]
            best = yield from self._halved(plan, [best, *emptied])
        if made.several and len(self._seen) < end:
            base = best if best.emptied else equal
            base = yield from self._halved(plan, [base, *made.by_kind(base)])
            bears = yield from self._sensitivities(plan, made, base)
            best = yield from self._halved(plan, [best, base, *made.trusting(base, bears), *made.shaped(base)])
            yield from self._measure(plan, equal.kept, self._parts)
            if self._gain(equal, best, self._parts) > SURE:
                best = yield from self._offspring(plan, made, best, end)
        yield from self._settle(plan, equal, best)
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
            parts = self._some(share)
            for each in alive:
                yield from self._measure(plan, each.kept, parts)
            alive.sort(key=lambda each: self._mean(each.kept, parts))
            if share < 1:
                alive = alive[: math.ceil(len(alive) / 2)]
        return alive[0]

    def _emptied(self, plan: Plan, made: Candidates, best: Candidate, end: int) -> Generator[None, None, list[int]]:
        """Lists parts that can go as a whole, each the one that the divergence grows least by with those before it
        gone, for what goes with it.

        Of those that are left, the few are looked at that did best when they were looked at last. The list ends where
        the plan lets no more go, the divergence is that of the best allocation so far, or so much was seen.
        """
        parts, path = self._some(SHARES[0]), list[int]()
        yield from self._measure(plan, made.start, parts)

        def growth(part: int) -> float:
            before, after = (self._mean(made.without(each), parts) for each in (path, [*path, part]))
            return (after - before) / made.size(part)

        seen: dict[int, float] = {}
        left = [part for part in made.can_go if made.within([part])]
        for part in left:
            yield from self._measure(plan, made.without([part]), parts)
            seen[part] = growth(part)
        while left and len(self._seen) < end and self._mean(made.without(path), parts) < self._mean(best.kept, parts):
            looked_at = sorted(left, key=lambda part: seen[part])[:LOOKS]
            for part in looked_at:
                yield from self._measure(plan, made.without([*path, part]), parts)
                seen[part] = growth(part)
            path.append(min(looked_at, key=lambda part: seen[part]))
            left = [part for part in left if part not in path and made.within([*path, part])]
        return path

    def _sensitivities(self, plan: Plan, made: Candidates, base: Candidate) -> Generator[None, None, Floats]:
        """[parts], the divergence with each part of the plan cut alone, as much as an allocation has it; with what
        goes as a whole there gone."""
        found, parts = [], self._some(SHARES[0])
        rest = made.without(base.emptied)
        for rows in plan.parts():
            kept = rest.copy()
            kept[rows] &= base.kept[rows]
            if np.array_equal(kept, rest):
                found.append(np.nan)
                continue
            yield from self._measure(plan, kept, parts)
            found.append(self._mean(kept, parts))
        return np.array(found)

    def _offspring(
        self, plan: Plan, made: "Candidates", best: Candidate, end: int
    ) -> Generator[None, None, Candidate]:
        """Goes on with random changes of the best, from coarse to fine, until so much was seen, or nothing is new."""
        rng, idle = np.random.default_rng(self.seed), 0
        for step in chain(STEPS, repeat(STEPS[-1])):
            known = len(self._seen)
            if known >= end or idle == IDLE:
                break
            brood = [made.offspring(best, rng, step) for _ in range(BROOD)]
            child = yield from self._halved(plan, brood)
            if self._gain(best, child, self._parts) > SURE:
                best = child
            idle = idle + 1 if len(self._seen) == known else 0
        return best

    def _settle(self, plan: Plan, equal: Candidate, best: Candidate) -> Iterator[None]:
        """Takes the best where it beats equal widths: for certain on all held-out examples, and in the mean on those
        that it was not chosen by."""
        for each in (equal, best):
            yield from self._measure(plan, each.kept, [*self._apart, *self._parts])
        everything = list(range(len(self.reference.held_out)))
        certain = self._gain(equal, best, everything) > CERTAIN
        fresh = self._gain(equal, best, self._apart) > 0
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

    def _some(self, share: float) -> list[int]:
        """Lists the first parts that choose, a share of them."""
        return self._parts[: math.ceil(share * len(self._parts))]

    def _all(self, kept: Bools, parts: Sequence[int]) -> Floats:
        """Divergences of a set on some parts, an example each."""
        return np.concatenate([self._seen[kept.tobytes(), part] for part in parts])

    def _gain(self, before: Candidate, after: Candidate, parts: Sequence[int]) -> float:
        """By how many standard errors one allocation is ahead of another on some parts."""
        return _gain(self._all(before.kept, parts), self._all(after.kept, parts))

    def _mean(self, kept: Bools, parts: Sequence[int]) -> float:
        """Their mean; infinite where one is not finite, or where there is none."""
        found = self._all(kept, parts)
        return float(np.nan_to_num(found, nan=np.inf).mean()) if len(found) else np.inf


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
