"""What the metrics of a whole split are made from: a few numbers for each example, on the CPU.

Symbols: N examples in a split, n of them; M predictions in a split, any number for each example.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Losses, predictions and right answers of a split, which metrics and bootstraps read.

    Attributes:
        losses: Mean loss over the counted positions, [N] float64; cross-entropy in nats, for classes.
        positions: Number of counted positions, [N] int64.
        predicted: Class of the largest logit at every counted position, [M] int64, example after example; float64
            numbers, [N] or [N, outputs], where a task predicts numbers. Empty where no metric of the task sees it.
        reference: Right answers, of the same shape and dtype.
        correct: Fraction of the counted positions whose largest logit is the right one, [N] float64; NaN where a task
            predicts numbers.
        answers: Number of entries of `predicted` that are of each example, [N] int64; their sum is M.
        overlap: How far the answer of each example overlaps the right one, from 0 to 1, [N] float64; empty where that
            is no question.
        ranks: Rank of the right candidate of each example, 1 the best, [N] float64; empty where none are ranked.
    """

    losses: NDArray[np.float64]
    positions: NDArray[np.int64]
    predicted: NDArray[Any]
    reference: NDArray[Any]
    correct: NDArray[np.float64]
    answers: NDArray[np.int64]
    overlap: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    ranks: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """Joins the scores of several batches, in their order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def take(self, rows: NDArray[np.int64]) -> "Scores":
        """Picks examples by their numbers, [n], each with all of its predictions.

        One may be taken more than once, as a bootstrap does.
        """
        answers = self.answers[rows]
        # An entry lies as far behind the first one of its example here as there.
        shift = (self.answers.cumsum() - self.answers)[rows] - (answers.cumsum() - answers)
        entries = np.arange(answers.sum()) + shift.repeat(answers)
        return Scores(
            self.losses[rows],
            self.positions[rows],
            self.predicted[entries],
            self.reference[entries],
            self.correct[rows],
            answers,
            *(values[rows] if len(values) else values for values in (self.overlap, self.ranks)),
        )

    def by_example(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums values of predictions, [M], over those of each example, [N]."""
        owner = np.arange(len(self.answers)).repeat(self.answers)
        return np.bincount(owner, values, len(self.answers))
