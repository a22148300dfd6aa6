"""LUCB: the most doubtful arms on either side of the boundary, until a confidence is reached."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.policies.base import POLICIES, Bools, Floats, Ints, Policy
from hf_mabprune.registry import option


@POLICIES.register("lucb")
@dataclass(kw_only=True)
class LUCB(Policy):
    """Lower and upper confidence bounds of the m safest arms.

    With R the set that would go by the means, the arms are in doubt on which R differs from the set that would go if
    every arm of R were as bad, and every other one as good, as its bounds allow, up to `tolerance`. Of these the arms
    of R with the lowest lower bounds and the others with the highest upper bounds are pulled, as many of either. None
    in doubt: the round is decided. Bounds are those of the source, mean -+ sqrt(ln(5 K t^4 / (4 delta)) / (2 n)) on
    rewards of this context mapped to [0, 1], t the number of choices so far.

    Source: Kalyanakrishnan, Tewari, Auer & Stone 2012 (LUCB1). It pulls one arm of either side at a time; the sets of
    several kinds and layers are after Chen et al. 2014.
    """

    STATE: ClassVar[tuple[str, ...]] = (*Policy.STATE, "seen", "total", "turn")

    confidence: float = option(0.95, "probability that a round that ends by itself has the right set, in (0, 1)")
    tolerance: float = option(0.0, "overlap of bounds across the boundary that is let pass, of the range of rewards")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")
        if not 0.0 <= self.tolerance < 1.0:
            raise ValueError(f"tolerance must be in [0, 1), got {self.tolerance}")
        self._restart()

    def _restart(self) -> None:
        """Bounds of a new context."""
        self.seen = np.zeros(self.arms)  # [K], pulls in this context
        self.total = np.zeros(self.arms)  # [K], sum of their rewards
        self.turn = 0  # t

    def select(self, k: int) -> Ints:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.turn += 1
        if self.choose is None:
            return self.largest(-self.seen, k)
        unseen = self.alive & (self.seen == 0)
        if unseen.any():
            return self.largest(np.where(unseen, 0.0, -np.inf), min(k, int(unseen.sum())))
        lower, upper = self.bounds()
        going = self.alive & ~self.choose(self.here())
        slack = self.tolerance / 2
        doubtful = self.alive & ~self.choose(np.where(going, lower + slack, upper - slack))
        doubt = (going != doubtful) & (self.seen < self.batches)
        sides = [(doubt & going, -lower, (k + 1) // 2), (doubt & ~going, upper, k // 2)]
        chosen = [
            self.largest(np.where(side, index, -np.inf), min(number, int(side.sum())))
            for side, index, number in sides
            if side.any() and number
        ]
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)

    def here(self) -> Floats:
        """[K], mean reward in this context, mapped to [0, 1]; 0.5 where there is none."""
        means = np.divide(self.total, self.seen, out=np.zeros(self.arms), where=self.seen > 0)
        return np.where(self.seen > 0, self.unit(means), 0.5)

    def bounds(self) -> tuple[Floats, Floats]:
        """[K] each, lower and upper bound of the mapped mean; a point for an arm that has met every batch."""
        logarithm = np.log(1.25 * self.arms * max(self.turn, 1) ** 4 / (1 - self.confidence))
        radius = np.sqrt(logarithm / (2 * np.maximum(self.seen, 1.0)))
        radius = np.where(self.seen >= self.batches, 0.0, radius) if self.batches else radius
        return self.here() - radius, self.here() + radius

    def _take_in(self, arms: Ints, rewards: Floats, controls: Floats | None = None) -> None:
        super()._take_in(arms, rewards)
        np.add.at(self.seen, arms, 1.0)
        np.add.at(self.total, arms, rewards)

    def new_context(self, kept: Bools) -> None:
        super().new_context(kept)
        self._restart()
