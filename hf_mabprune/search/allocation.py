"""How much goes from which site, decided on the refitted model itself.

Costs of arms compare well within a site; between sites they do not, for the layers above make up for what a site
loses, or make it worse. So after a search with refits the costs of whole sites are scaled: a move multiplies those of
one site, and so some of its arms stay in the place of arms elsewhere, or go in their place. A pull of a move makes the
smaller model, refits it and measures its KL divergence on held-out examples; the move is taken where the paired
difference is a gain beyond its standard error.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count

import numpy as np

from hf_mabprune.compensation import Compensation, DenseReference, RefitCache, refit_all
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.selection.plan import Bools, Floats, Ints, Plan
from hf_mabprune.surgery.cut import cut

FACTORS = (2.0, 1.5, 1.2)  # of a move, from coarse to fine
SURE = 1.0  # standard errors that a paired gain must exceed


@dataclass
class Allocation:
    """Moves under way. Every process of a launch does the same.

    Args:
        method: How what stays is refitted.
        reference: The dense model and its data.
        trials: Sets that moves are measured on at most for a size, beside the candidates.
        seed: Of the order in which moves are tried.

    Attributes:
        scores: [K], the best ones found for the last size, higher = remove first.
        before, after: Mean held-out KL divergence of the last size with the first candidate and with the best scores,
            in nats.
        taken: Moves, for all sizes.
        cost: Of all measurements; a set that was measured counts as a pull.
    """

    method: Compensation
    reference: DenseReference
    trials: int
    seed: int = 0
    scores: Floats = field(init=False)
    before: float = field(init=False)
    after: float = field(init=False)
    taken: int = 0
    cost: Cost = field(default_factory=Cost)
    cache: RefitCache = field(default_factory=RefitCache, repr=False)  # refits of sites
    seen: dict[bytes, Floats] = field(default_factory=dict, repr=False)  # divergences of sets

    def run(self, plan: Plan, candidates: Sequence[Floats], start: Bools) -> Iterator[None]:
        """Goes on from the best of some scores to better ones; yields after every set that it measures.

        Args:
            plan: Of one size.
            candidates: [K] each.
            start: [K], what a larger size has kept.
        """
        started, spent = time.perf_counter(), self.reference.cost
        choices = [(scores, plan.choose(scores, start)[0]) for scores in candidates]
        for _, kept in choices:
            yield from self._measure(plan, kept)
        self.before = float(self.seen[choices[0][1].tobytes()].mean())
        self.scores, best = min(choices, key=lambda choice: self.seen[choice[1].tobytes()].mean())
        for rows, factor in self._moves(plan):
            scores = self.scores.copy()
            scores[rows] *= factor
            kept, _ = plan.choose(scores, start)
            yield from self._measure(plan, kept)
            if _is_gain(self.seen[best.tobytes()], self.seen[kept.tobytes()]):
                self.scores, best = scores, kept
                self.taken += 1
        self.after = float(self.seen[best.tobytes()].mean())
        tokens = round((self.reference.cost - spent).forward_tokens)
        self.cost += Cost(forward_tokens=tokens, seconds=time.perf_counter() - started)

    def summary(self) -> str:
        """What it did, in half a sentence."""
        return (
            f"{self.cost.pulls} allocations measured, {self.taken} moves taken: held-out KL {self.before:.4g} -> "
            f"{self.after:.4g}"
        )

    def _moves(self, plan: Plan) -> Iterator[tuple[Ints, float]]:
        """Rows of a site and what their scores are multiplied by, until there are no more trials or no move helps."""
        rng, last = np.random.default_rng(self.seed), self.cost.pulls + self.trials
        sites = plan.parts()
        for factor in FACTORS:
            moves = [(rows, each) for rows in sites for each in (factor, 1 / factor)]
            turns = chain.from_iterable(rng.permutation(len(moves)) for _ in count())
            stale = 0
            while stale < len(moves) and self.cost.pulls < last:
                taken = self.taken
                yield moves[next(turns)]
                stale = 0 if self.taken > taken else stale + 1

    def _measure(self, plan: Plan, kept: Bools) -> Iterator[None]:
        """Divergences of a set, refitted, on the held-out examples: into `seen`."""
        if (key := kept.tobytes()) in self.seen:
            return
        keep = plan.arms.kept_units(kept)
        small = cut(self.reference.model, keep, plan.layout)
        refit_all(self.method, self.reference, small, keep, self.cache)
        self.seen[key] = self.reference.divergences(small)
        self.cost += Cost(pulls=1)
        yield


def _is_gain(before: Floats, after: Floats) -> bool:
    """Whether divergences, an example each, fell by more than the standard error of the paired difference.

    Where the outputs of either model are not finite, the one with more such examples is worse.
    """
    finite, finite_before = (int(np.isfinite(values).sum()) for values in (after, before))
    if not finite == finite_before == len(before):
        return finite > finite_before
    difference = before - after
    return len(difference) > 1 and bool(difference.mean() > SURE * difference.std(ddof=1) / np.sqrt(len(difference)))
