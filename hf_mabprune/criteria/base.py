"""The contract of a criterion: from weights, activations and gradients to one score an arm, without pulls.

A score says what removing the arm costs: low = safe to remove. Scores add up over the columns or units of an arm, so
that blocks, heads and key-value groups compare by score per cost where a budget counts parameters or MACs; criteria
whose scores do not add up (`per_cost` false) compare as they are.
Symbols: K arms; D hidden, C columns of an output projection W [D, C]; h its input; S the columns of one arm; m gates.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.arms import WITHIN
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats, Ints
from hf_mabprune.effects.broken import cause
from hf_mabprune.effects.kfac import backward_passes
from hf_mabprune.registry import Registry
from hf_mabprune.selection.plan import Plan
from hf_mabprune.tasks.readout import Readout

CRITERIA: Registry[type["Criterion"]] = Registry("criterion", "hf_mabprune.criteria")

Bools = NDArray[np.bool_]


@dataclass(kw_only=True)
class Criterion(ABC):
    """A ranking of arms for removal.

    Attributes:
        passes: Forward and backward passes over the calibration data that its statistics take, were no other criterion
            to share them; (1, None) takes as many backward passes as the outputs have coordinates, see `passes_on`.
        per_cost: Whether arms compare by score per cost where a budget counts parameters or MACs.
        kinds: Kinds of arms that it can rank.
    """

    passes: ClassVar[tuple[int, int | None]]
    per_cost: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = WITHIN

    @classmethod
    def ranks(cls, kinds: Collection[str]) -> bool:
        """Tells whether it can rank arms of these kinds."""
        return set(kinds) <= set(cls.kinds)

    @classmethod
    def passes_on(cls, readout: Readout) -> tuple[int, int]:
        """Forward and backward passes over the calibration data, where outputs are such as these.

        Args:
            readout: What the dense model says on any batch of the task; its sizes alone matter.
        """
        forward, backward = cls.passes
        return forward, backward_passes(readout) if backward is None else backward

    @abstractmethod
    def scores(self, statistics: CalibrationStatistics) -> Floats:
        """[K], low = safe to remove."""

    def scored(self, statistics: CalibrationStatistics) -> Floats:
        """[K], `scores` of these statistics, computed once for all sizes."""
        return statistics.scored(repr(self), lambda: self.scores(statistics))

    def choose(self, statistics: CalibrationStatistics, plan: Plan) -> tuple[Bools, Ints]:
        """Removes what a plan asks for, lowest scores first; its floors hold.

        Args:
            plan: What has to go, from the arms of the statistics.

        Returns:
            kept, [K], and the order of removal, [K]: first the arms that go, then those that stay, safest first.

        Raises:
            ValueError: If a score is not finite.
        """
        scores = self.scored(statistics)
        if not (finite := np.isfinite(scores)).all():
            sites = ", ".join(dict.fromkeys(statistics.arms.site[~finite].tolist()))
            raise ValueError(
                f"the scores of {type(self).__name__} are not finite for {int((~finite).sum())} of {len(scores)} "
                f"arms, at {sites}: {cause(statistics.model, statistics.task, statistics.batches)}"
            )
        rewards = -scores if self.per_cost else -scores * plan.cost()  # a plan divides by the cost
        kept, removed = plan.choose(rewards, np.ones(len(scores), dtype=bool))
        stay = np.flatnonzero(kept)
        return kept, np.concatenate([removed, stay[np.argsort(-(rewards / plan.cost())[stay], kind="stable")]])
