"""LUCB: the most doubtful arms on either side of the boundary, until a confidence is reached."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.policies.base import POLICIES, Choose, Floats, Ints
from hf_mabprune.policies.set_policy import SetPolicy
from hf_mabprune.registry import option
from hf_mabprune.states import WHOLE, Entry, Values


@POLICIES.register("lucb")
@dataclass(kw_only=True)
class LUCB(SetPolicy):
    """Lower and upper confidence bounds of the m safest arms.

    With R the set that would go by the means, the arms are in doubt on which R differs from the set that would go if
    every arm of R were as bad, and every other one as good, as its bounds allow, up to `tolerance`. Of these the arms
    of R with the lowest lower bounds and the others with the highest upper bounds are pulled, as many of either. None
    in doubt: the round is decided. Bounds are those of the source, mean -+ sqrt(ln(5 K t^4 / (4 delta)) / (2 n)) on
    rewards of this context mapped to [0, 1], t the number of choices so far.

    Source: Kalyanakrishnan, Tewari, Auer & Stone 2012 (LUCB1). It pulls one arm of either side at a time; the sets of
    several kinds and layers are after Chen et al. 2014.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {
        **SetPolicy.STATE, "total": Values(float), "turn": Values(int, (), 0, WHOLE),
    }  # fmt: skip

    confidence: float = option(0.95, "probability that a round that ends by itself has the right set, in (0, 1)")
    tolerance: float = option(0.0, "overlap of bounds across the boundary that is let pass, of the range of rewards")

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")
        if not 0.0 <= self.tolerance < 1.0:
            raise ValueError(f"tolerance must be in [0, 1), got {self.tolerance}")
        super().__post_init__()

    def _restart(self) -> None:
        super()._restart()
        self.total = np.zeros(self.arms)  # [K], sum of the rewards of this context
        self.turn = 0  # t

    def select(self, k: int) -> Ints:
        if k > 0:  # a call that is refused is no choice
            self.turn += 1
        return super().select(k)

    def _select(self, k: int, choose: Choose) -> Ints:
        unseen = self.unseen()
        if unseen.any():
            return self.largest_of(unseen, np.zeros(self.arms), k)
        lower, upper = self.bounds()
        going = self.going(choose, self.here())
        slack = self.tolerance / 2  # bounds that overlap by less than the tolerance do not overlap
        doubt = self.changing(choose, going, lower + slack, upper - slack) & (self.seen < self.batches)
        sides = [(doubt & going, -lower, (k + 1) // 2), (doubt & ~going, upper, k // 2)]
        chosen = [self.largest_of(side, index, number) for side, index, number in sides if side.any() and number]
        return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)

    def here(self) -> Floats:
        """[K], mean reward in this context, mapped to [0, 1]; 0.5 where there is none."""
        return np.where(self.seen > 0, self.unit(self.per_pull(self.total)), 0.5)

    def bounds(self) -> tuple[Floats, Floats]:
        """[K] each, lower and upper bound of the mapped mean; a point for an arm that has met every batch."""
        # beta(n, t) = sqrt(ln(k_1 K t^4 / delta) / (2 n)) with k_1 = 5/4
        logarithm = np.log(1.25 * self.arms * max(self.turn, 1) ** 4 / (1 - self.confidence))
        radius = np.sqrt(logarithm / (2 * np.maximum(self.seen, 1.0)))
        radius = np.where(self.exhausted(), 0.0, radius)
        return self.here() - radius, self.here() + radius

    def _take_in(self, arms: Ints, rewards: Floats, controls: Floats | None = None) -> None:
        super()._take_in(arms, rewards)
        np.add.at(self.total, arms, rewards)
