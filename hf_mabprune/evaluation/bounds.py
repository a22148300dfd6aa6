"""Bounds of what a pruned model loses, for one look at fresh examples."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

MANY = 2**22  # examples, more than a split has


def upper_mean(values: Floats, confidence: float = 0.95) -> float:
    """Upper confidence bound of the mean of independent values in [0, 1], [n]: the empirical Bernstein bound,
    mean + sqrt(2 V ln(2 / d) / n) + 7 ln(2 / d) / (3 (n - 1)), V the sample variance, d = 1 - confidence.

    Source: Maurer & Pontil 2009, theorem 4.
    """
    count, logarithm = len(values), np.log(2 / (1 - confidence))
    if count < 2:
        return 1.0
    radius = np.sqrt(2 * values.var(ddof=1) * logarithm / count) + 7 * logarithm / (3 * (count - 1))
    return float(min(1.0, values.mean() + radius))


def upper_share(hits: Floats | float, count: int, confidence: float = 0.95) -> Floats:
    """Upper confidence bound of a probability from independent trials (Clopper & Pearson 1934, one-sided).

    Args:
        hits: Trials of `count` that had the outcome, [...].
    """
    misses = count - np.asarray(hits)
    bound = stats.beta.ppf(confidence, count - misses + 1, np.maximum(misses, 1))
    return np.asarray(np.where(misses == 0, 1.0, bound))


def is_below(values: Floats, most: float, confidence: float = 0.95) -> Bools:
    """Tests by a bet whether the mean of independent values in [0, 1], [..., n], is below a number, at one look. Their
    order must not depend on what they are.

    Each value is bet against in its turn, with a stake that follows from the values before it: the capital
    prod(1 + l_i (most - x_i)) exceeds 1 / (1 - confidence) at some time with no more than that probability if the mean
    is `most` or more. l_i = sqrt(2 ln(1 / (1 - confidence)) / (n v_i)), at most 3/4 / (1 - most), v_i the variance so
    far with one value of 1/2 before it.

    Source: Waudby-Smith & Ramdas 2023, section 4 (predictable plug-in), one-sided.

    Returns:
        [...], whether it is, with that confidence.
    """
    count, logarithm = values.shape[-1], np.log(1 / (1 - confidence))
    turns = np.arange(1, count + 1)
    means = (0.5 + np.cumsum(values, -1)) / (turns + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2, -1)) / (turns + 1)
    before = np.concatenate([np.full((*values.shape[:-1], 1), 0.25), variances[..., :-1]], -1)
    stakes = np.minimum(np.sqrt(2 * logarithm / (count * before)), 0.75 / (1 - most))
    capital = np.cumsum(np.log1p(stakes * (most - values)), -1)
    return np.asarray(capital.max(-1) >= logarithm)


def least_examples(most: float, lost: float, confidence: float, exact: bool) -> int:
    """Counts the examples that it takes to say that a mean is below a number, where each shows nothing lost.

    Args:
        most: Number that the mean is to be below, in (0, 1).
        lost: Value of an example that shows nothing lost, below that.
        confidence: Of the statement.
        exact: Whether values are 0 or 1, and the statement is by `upper_share`; else by `is_below`.

    Returns:
        That number; `MANY` where a bet takes more.
    """
    if exact:
        return int(np.ceil(np.log(1 - confidence) / np.log(1 - most)))

    def enough(count: int) -> bool:
        return bool(is_below(np.full(count, lost), most, confidence))

    high = 2
    while not enough(high):
        high *= 2
        if high >= MANY:
            return MANY
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
