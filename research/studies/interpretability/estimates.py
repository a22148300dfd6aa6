"""Means with intervals over seeds, correlations with theirs, and what they say of a claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

HELD, NOT_HELD, NOT_DECIDABLE = "held", "not held", "not decidable"
LEVEL = 0.95
POINT = 0.01  # of accuracy: less is no difference
SMALL = 0.3  # a correlation whose interval lies within that of 0 is none to speak of


@dataclass(frozen=True)
class Estimate:
    """Holds a number with its 95% interval; of one seed there is no interval.

    Attributes:
        value: Mean over seeds, or correlation.
        low, high: Interval; not numbers where there is none.
        count: Seeds, or points.
        p: Of no correlation; not a number for means.
    """

    value: float
    low: float
    high: float
    count: int
    p: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.low):
            return f"{self.value:+.3f}"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def p_value(self) -> str:
        """Writes p; a dash where there is none."""
        if self.p < 0.0005:
            return "< 0.001"
        return "-" if math.isnan(self.p) else f"{self.p:.3f}"

    def plus_minus(self, digits: int = 3) -> str:
        """Writes it as a value and half of the interval, with so many decimals."""
        if math.isnan(self.value):
            return "-"
        half = "" if math.isnan(self.low) else f" ± {(self.high - self.low) / 2:.{digits}f}"
        return f"{self.value:.{digits}f}{half}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """Gives the mean of one number a seed, with Student's interval."""
    found = np.asarray(values, dtype=float)
    found = found[~np.isnan(found)]
    if not len(found):
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Estimate(mean, mean - half, mean + half, len(found))


def correlation(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Gives Pearson's correlation with Fisher's interval; none for fewer than four points or a constant."""
    one, other = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    there = ~(np.isnan(one) | np.isnan(other))
    one, other = one[there], other[there]
    if len(one) < 4 or not np.ptp(one) or not np.ptp(other):
        return Estimate(math.nan, math.nan, math.nan, len(one))
    found = stats.pearsonr(one, other)
    low, high = found.confidence_interval(LEVEL)
    return Estimate(float(found.statistic), float(low), float(high), len(one), float(found.pvalue))


def larger(difference: Estimate, by: float = 0.0, at_most: float = POINT) -> str:
    """Says whether a difference is above `by`: held where its interval is, not held where it ends below `at_most`."""
    if difference.low > by:
        return HELD
    return NOT_HELD if difference.high < at_most else NOT_DECIDABLE


def unrelated(found: Estimate) -> str:
    """Says whether there is no correlation: an interval near 0 says so, one clear of 0 says the opposite."""
    if found.low > 0 or found.high < 0:
        return NOT_HELD
    return HELD if found.low >= -SMALL and found.high <= SMALL else NOT_DECIDABLE
