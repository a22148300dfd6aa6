"""Sequential halving: a fixed budget, spent on ever fewer arms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_mabprune.policies.base import POLICIES, Bools, Choose, Ints
from hf_mabprune.policies.set_policy import SetPolicy
from hf_mabprune.states import WHOLE, Entry, Values

BISECTIONS = 30  # of the range of means, to 1e-9 of it


@POLICIES.register("sequential_halving")
@dataclass(kw_only=True)
class SequentialHalving(SetPolicy):
    """ceil(log2 K) phases with equal shares of the round's pulls; after each, half of the arms are out of question.

    An arm is the further from question the more its side is settled: with R the set that would go by the means, those
    arms stay in question whose side changes if every arm of R were worse, and every other one better, by some d; d is
    the largest that leaves at most half of them. So budgets of several kinds or layers have a boundary each. The i-th
    pull of any arm of a round is made on the i-th batch, so that arms are compared on the same examples. What phases
    leave over goes to the last one.

    Sources: Karnin, Koren & Somekh 2013 (one best arm); Baharav & Tse 2019 (the same samples for all arms); gaps to
    the boundary of a set as in Bubeck, Wang & Viswanathan 2013.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {
        **SetPolicy.STATE,
        "question": Values(bool),
        "phase": Values(int, (), 0, WHOLE),
        "due": Values(int, (), 0, WHOLE),
    }

    def _restart(self) -> None:
        super()._restart()
        self.question = self.alive.copy()  # [K], arms whose side is not settled
        self.phase, self.due = 0, 0  # the phase under way, and the pulls that each arm in question has at its end

    @property
    def phases(self) -> int:
        """ceil(log2 K), the phases of a round with K arms alive."""
        return phases_of(self.number_alive())

    def _select(self, k: int, choose: Choose) -> Ints:
        while True:
            fresh = self.question & (self.seen < self.batches)
            wanting = fresh & ((self.seen < self.due) | (self.phase == self.phases))
            if wanting.any():
                return self.largest_of(wanting, -self.seen, k)
            if self.phase == self.phases or not fresh.any():
                return np.empty(0, dtype=np.int64)
            if self.phase:
                self.question = self._halved(choose)
            self.phase += 1
            self.due = int(self.seen[self.question].max(initial=0)) + self._share()

    def _share(self) -> int:
        """Pulls of each arm in question in a phase: budget / (phases * arms in question), at least one."""
        return max(1, self.budget // (self.phases * max(1, int(self.question.sum()))))

    def _halved(self, choose: Choose) -> Bools:
        """[K], what stays in question: at most half of it, the arms nearest to the boundary."""
        means = self.means()
        going = self.going(choose, means)

        def doubtful(distance: float) -> Bools:
            return self.question & self.changing(choose, going, means - distance, means + distance)

        size = -(-int(self.question.sum()) // 2)
        low, high = 0.0, float(np.ptp(means[self.alive]))
        if doubtful(high).sum() <= size:
            return doubtful(high)
        for _ in range(BISECTIONS):  # the number of doubtful arms grows with the distance
            middle = (low + high) / 2
            low, high = (middle, high) if doubtful(middle).sum() <= size else (low, middle)
        return doubtful(low)

    def contradictions(self, state: dict[str, Any]) -> Iterator[str]:
        """See `Policy.contradictions`."""
        yield from super().contradictions(state)
        if (state["question"] & ~state["alive"]).any():
            yield "arms in question are gone"
        if state["phase"] > phases_of(int(state["alive"].sum())):
            yield "phase is beyond the last one"


def phases_of(arms: int) -> int:
    """Counts the phases of a round with so many arms alive."""
    return max(1, int(np.ceil(np.log2(max(arms, 2)))))
