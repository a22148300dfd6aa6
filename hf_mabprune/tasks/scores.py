"""What the metrics of a whole split are made from: a few numbers for each example, on the CPU.

Symbols: N examples in a split, n of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Losses, predictions and right answers of a split, one entry an example, which metrics and bootstraps read.

    Attributes:
        losses: Mean loss over the counted positions, [N] float64; cross-entropy in nats, for classes.
        positions: Number of counted positions, [N] int64.
        predicted: Class of the largest logit at the first counted position, [N] int64; float64 numbers, [N] or
            [N, outputs], where a task predicts numbers.
        reference: Right answer there, of the same shape and dtype.
        correct: Fraction of the counted positions whose largest logit is the right one, [N] float64; NaN where a task
            predicts numbers.
    """

    losses: NDArray[np.float64]
    positions: NDArray[np.int64]
    predicted: NDArray[Any]
    reference: NDArray[Any]
    correct: NDArray[np.float64]

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """Joins the scores of several batches, in their order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def take(self, rows: NDArray[np.int64]) -> "Scores":
        """Picks examples by their numbers, [n]; one may be taken more than once, as a bootstrap does."""
        return Scores(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))
