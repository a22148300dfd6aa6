"""Bounds of what a pruned model loses, for one look at fresh examples."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


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


def upper_share(hits: int, count: int, confidence: float = 0.95) -> float:
    """Upper confidence bound of a probability from independent trials (Clopper & Pearson 1934, one-sided)."""
    return 1.0 if hits == count else float(stats.beta.ppf(confidence, hits + 1, count - hits))
