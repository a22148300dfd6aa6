"""Race: pull only the arms that could still change what is removed, and stop when none could."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_mabprune.policies.base import POLICIES, Choose, Floats, Ints
from hf_mabprune.policies.confidence_sequence import ConfidenceSequence
from hf_mabprune.policies.set_policy import SetPolicy
from hf_mabprune.registry import option
from hf_mabprune.states import Entry, Values


@POLICIES.register("race")
@dataclass(kw_only=True)
class Race(SetPolicy):
    """Combinatorial lower-upper confidence bounds on paired batches, with control variates.

    Each round has a set R that would go by the means, and the set that would go if every arm of R were as bad, and
    every other one as good, as its interval allows. Where the two are the same the round is decided, with the stated
    confidence; else the arms on which they differ are pulled, the widest intervals first. The i-th pull of any arm is
    made on the i-th batch of the round, so arms are compared on the same examples; an arm that has met every batch is
    known exactly, as far as the calibration data go.

    Where a control is given (an estimate of the same reward on the same batch whose mean over all batches is known),
    its error on the batch is taken off the reward: mean = known mean + mean of (reward - control).

    Intervals are those of `ConfidenceSequence`, alpha = (1 - confidence) / (2 K) a side, on (reward - control) mapped
    to [0, 1] and clipped. Where no range is given it comes from the first pulls of a round, widened by
    half on either side; those pulls then count for the means alone. What holds at all times is that the clipped means
    are inside.

    Sources: Chen et al. 2014 (CLUCB), Waudby-Smith & Ramdas 2024 (intervals), Verma & Hanawal 2021 (control variates).
    The batching and the defaults are this project's.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {
        **SetPolicy.STATE,
        "means_seen": Values(float),
        "known": Values(float),
        "informed": Values(bool, ()),
        "bottom": Values(float, ()),
        "top": Values(float, ()),
        "ranged": Values(bool, ()),
        "sequence_state": Values(float, (6, "K"), low=0),
    }

    confidence: float = option(0.95, "probability that all intervals of a round hold at all times, in (0, 1)")
    lowest: float | None = option(None, "smallest reward (less its control) of intervals; null: from data")
    highest: float | None = option(None, "largest one")

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")
        low, high = self.lowest, self.highest
        if (low, high) != (None, None) and (low is None or high is None or not -np.inf < low < high < np.inf):
            raise ValueError(f"lowest and highest go together, finite and in order, got {low} and {high}")
        super().__post_init__()
        self.informed = False  # whether controls with known means are given

    def _restart(self) -> None:
        super()._restart()
        self.sequence = ConfidenceSequence(self.arms, (1 - self.confidence) / (2 * self.arms))
        self.means_seen = np.zeros(self.arms)  # [K], sum of (reward - control) in this context
        self.known = np.zeros(self.arms)  # [K], known mean of the control
        self.ranged = self.lowest is not None  # whether the range of intervals is settled
        self.bottom, self.top = float(self.lowest or 0.0), float(self.highest or 0.0)

    def begin(self, choose: Choose, batches: int, known: Floats | None = None, budget: int | None = None) -> None:
        super().begin(choose, batches, known, budget)
        self.informed = known is not None
        if known is not None:
            self.known = known.copy()

    def _select(self, k: int, choose: Choose) -> Ints:
        if not self.informed:  # without a prior every arm is looked at once
            unseen = self.unseen()
            if unseen.any():
                return self.largest_of(unseen, np.zeros(self.arms), k)
        elif not self.ranged:  # any arms tell how far controls are off
            return self.draw(np.zeros(self.arms), k)
        lower, upper = self.intervals()
        doubt = self.changing(choose, self.going(choose, self.means()), lower, upper) & (self.seen < self.batches)
        if not doubt.any():
            return np.empty(0, dtype=np.int64)
        return self.largest_of(doubt, upper - lower, k)

    def _take_in(self, arms: Ints, rewards: Floats, controls: Floats | None = None) -> None:
        super()._take_in(arms, rewards)
        corrected = rewards if controls is None else rewards - controls
        np.add.at(self.means_seen, arms, corrected)
        if self.ranged:
            mapped = np.clip((corrected - self.bottom) / (self.top - self.bottom), 0.0, 1.0)
            for turn in _turns(arms):
                self.sequence.add(arms[turn], mapped[turn])
            return
        # The first pulls set the range and are not counted in intervals: a range that was fitted to them says nothing
        # about how far they are from their mean.
        spread = float(corrected.max() - corrected.min()) or max(abs(float(corrected.max())), 1e-12)
        self.bottom, self.top = float(corrected.min()) - spread / 2, float(corrected.max()) + spread / 2
        self.ranged = True

    def intervals(self) -> tuple[Floats, Floats]:
        """[K] each, lower and upper bounds of the mean rewards; a point for an arm that has met every batch."""
        lower, upper = self.sequence.bounds()
        scale = self.top - self.bottom
        lower, upper = (self.known + self.bottom + scale * bound for bound in (lower, upper))
        exact, means = self.exhausted(), self.means()
        return np.where(exact, means, lower), np.where(exact, means, upper)

    def means(self) -> Floats:
        """[K], mean reward in this context, by the control where there is one; those of earlier contexts elsewhere."""
        here = self.per_pull(self.means_seen) + self.known
        return here if self.informed else np.where(self.seen > 0, here, super().means())

    def scores(self) -> Floats:
        if not self.informed:
            return super().scores()
        return np.where(self.alive, self.means(), super().scores())

    @property
    def sequence_state(self) -> Floats:
        """[6, K], the sums of the intervals, for the state."""
        return np.stack([getattr(self.sequence, name) for name in ConfidenceSequence.sums()])

    @sequence_state.setter
    def sequence_state(self, state: Floats) -> None:
        for name, values in zip(ConfidenceSequence.sums(), np.array(state), strict=True):
            setattr(self.sequence, name, values)

    def contradictions(self, state: dict[str, Any]) -> Iterator[str]:
        """See `Policy.contradictions`."""
        yield from super().contradictions(state)
        if state["ranged"] and state["bottom"] >= state["top"]:
            yield "the range of intervals is empty"
        count, total, *_ = state["sequence_state"]
        if (total > count * (1 + 1e-9)).any() or (count > state["seen"]).any():
            yield "intervals are about pulls that were not made"


def _turns(arms: Ints) -> list[Ints]:
    """Splits the places of a list of arms so that no arm occurs twice in a part, in order."""
    order = np.argsort(arms, kind="stable")
    repeat = np.arange(len(arms)) - np.searchsorted(arms[order], arms[order])
    return [np.sort(order[repeat == turn]) for turn in range(int(repeat.max(initial=-1)) + 1)]
