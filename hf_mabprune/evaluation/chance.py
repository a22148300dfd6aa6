"""What a model must beat: an answer that takes no model. One that does not was given wrong labels or columns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.scores import Scores

LABELS = "labels may be swapped, or the columns are wrong"
SURE = 0.01  # probability with which a model that is as good as chance may be called worse


class Below(NamedTuple):
    """A model that is worse than chance.

    Attributes:
        how: Its figure beside that of chance.
        meaning: What may be wrong, where the model is one that was trained.
    """

    how: str
    meaning: str


def below_chance(task: Task, scores: Scores) -> Below | None:
    """Says how a model is worse than what takes none; None where it is not, or where that is not certain.

    Classes, of examples or of tokens, are compared with the most frequent one, given every time; numbers with their
    mean; what a language model says with all tokens of the vocabulary, equally likely.

    Args:
        task: Task of the model.
        scores: What the model says on a split.
    """
    if not task.has_loss:
        return _order(scores)
    if not task.predicts_classes:
        return _order(scores) or _numbers(scores)
    return _classes(scores) if task.keeps_predictions else _tokens(task, scores)


def _classes(scores: Scores) -> Below | None:
    """Compares hits with those of the most frequent class: one-sided binomial test; where an example has several
    answers, which depend on each other, a one-sided t test of the differences of examples."""
    classes, counts = np.unique(scores.reference, return_counts=True)
    right, count = scores.predicted == scores.reference, len(scores.reference)
    if not count:
        return None
    hits, most, frequent = int(right.sum()), float(counts.max() / count), classes[counts.argmax()]
    if (scores.answers == 1).all():
        doubt = stats.binomtest(hits, count, most, alternative="less").pvalue
    else:
        behind = scores.by_example((scores.reference == frequent) - right.astype(float))
        doubt = _chance_of(behind[scores.answers > 0])
    if doubt >= SURE:
        return None
    return Below(f"accuracy {hits / count:.3g} is below the {most:.3g} of always answering class {frequent}", LABELS)


def _chance_of(values: NDArray[np.float64]) -> float:
    """Gives the p-value of a mean above 0 of independent values, [n], by a t test; 1 where they are too few."""
    if len(values) < 2:
        return 1.0
    if not (spread := values.std(ddof=1)):
        return float(values[0] <= 0)
    return float(stats.t.sf(values.mean() / spread * len(values) ** 0.5, len(values) - 1))


def _order(scores: Scores) -> Below | None:
    """Looks at the sign of the correlation of predicted and right numbers, over all outputs."""
    if not len(scores.reference):
        return None
    predicted, deviation = (values - values.mean(0) for values in (scores.predicted, scores.reference))
    if deviation.any() and not float((predicted * deviation).sum()) > 0:
        return Below("the correlation of predicted and right numbers is not above 0", LABELS)
    return None


def _numbers(scores: Scores) -> Below | None:
    """Compares squared errors with those of the mean, over all outputs."""
    left = float(np.square(scores.predicted - scores.reference).sum())
    whole = float(np.square(scores.reference - scores.reference.mean(0)).sum())
    if whole > 0 and not left <= whole:
        how = f"the squared error is {left / whole:.3g} times that of always answering the mean"
        return Below(how, "labels may be on another scale, or the columns are wrong")
    return None


def _tokens(task: Task, scores: Scores) -> Below | None:
    """Compares the loss with that of all tokens equally likely, the logarithm of their number."""
    config = task.model_config.get_text_config()
    choices = int(getattr(config, "vocab_size", 0) or task.classes)
    loss = float(np.average(scores.losses, weights=scores.positions))
    if loss <= np.log(max(choices, 1)):
        return None
    how = f"loss {loss:.4g} is above the {np.log(choices):.4g} of {choices:,} equally likely tokens"
    return Below(how, "the columns may be wrong, or tokenizer and model do not belong together")
