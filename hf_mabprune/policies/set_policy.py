"""What the policies share that look for a set: the arms that a plan removes, not the single safest arm.

Such a rule is told at the start of a round how scores become a set (`Policy.begin`). With R the arms that would go by
their means, it asks which arms would change sides if those of R were worse, and all others better, than they look: by
as much as confidence bounds allow, or by some distance. Only these deserve pulls, since no other can change what the
round removes. Whatever `choose` solves (one budget, several kinds, a layer each, a knapsack) has its boundary so.

The i-th pull of any arm in a context is made on the i-th batch (by whoever pulls), so that arms are compared on the
same examples, and an arm that has met every batch is known exactly, as far as the calibration data go.
Symbols: K arms; R the arms that would go by the means.

Source: Chen et al. 2014, "Combinatorial pure exploration of multi-armed bandits" (CLUCB), for sets that any
maximisation oracle gives.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_mabprune.policies.base import Bools, Choose, Floats, Ints, Policy
from hf_mabprune.states import WHOLE, Entry, Values


@dataclass(kw_only=True)
class SetPolicy(Policy):
    """A policy that aims at the set that goes in a round, and counts the pulls of the context that the round is in.

    Subclasses check their own options before this class starts the first context.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {**Policy.STATE, "seen": Values(float, low=0, high=WHOLE)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._restart()

    def _restart(self) -> None:
        """Forgets what belongs to one context; rules with more of it extend this."""
        self.seen = np.zeros(self.arms)  # [K], pulls in this context

    def select(self, k: int) -> Ints:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if self.choose is None:  # outside of a round there is no set, and so no boundary
            return self.largest(-self.seen, k)
        return self._select(k, self.choose)

    @abstractmethod
    def _select(self, k: int, choose: Choose) -> Ints:
        """Chooses as `select` does, in a round.

        Args:
            choose: Scores, [K], in; what would be left, [K], out.
        """

    def largest_of(self, candidates: Bools, index: Floats, k: int) -> Ints:
        """Gives the `k` (or all) of some living arms, [K], with the largest `index`, [K]; there must be one."""
        return self.largest(np.where(candidates, index, -np.inf), min(k, int(candidates.sum())))

    def going(self, choose: Choose, scores: Floats) -> Bools:
        """[K], R: the living arms that would go by some scores."""
        return self.alive & ~choose(scores)

    def changing(self, choose: Choose, going: Bools, lower: Floats, upper: Floats) -> Bools:
        """[K], arms that change sides if those of `going` had their lower bounds and all others their upper."""
        return going != self.going(choose, np.where(going, lower, upper))

    def unseen(self) -> Bools:
        """[K], living arms without a pull in this context."""
        return self.alive & (self.seen == 0)

    def exhausted(self) -> Bools:
        """[K], arms that have met every batch of the round; none before the first round."""
        return self.seen >= self.batches if self.batches else np.zeros(self.arms, dtype=bool)

    def per_pull(self, sums: Floats) -> Floats:
        """[K], sums over the pulls of this context divided by their number; 0 where there is none."""
        return np.divide(sums, self.seen, out=np.zeros(self.arms), where=self.seen > 0)

    def _take_in(self, arms: Ints, rewards: Floats, controls: Floats | None = None) -> None:
        super()._take_in(arms, rewards, controls)
        np.add.at(self.seen, arms, 1.0)

    def new_context(self, kept: Bools) -> None:
        super().new_context(kept)
        self._restart()

    def contradictions(self, state: dict[str, Any]) -> Iterator[str]:
        """See `Policy.contradictions`."""
        yield from super().contradictions(state)
        if (state["seen"] != np.floor(state["seen"])).any():
            yield "seen has parts of pulls"

    def check_pulls(self, alive: Bools, seen: Ints, pulls: Ints) -> None:
        """See `Policy.check_pulls`."""
        super().check_pulls(alive, seen, pulls)
        if not np.array_equal(self.seen[alive], seen[alive]):
            raise ValueError("the policy's pulls of this round are not those that were made")
