"""Confidence sequences: intervals around running means that hold at all times at once. Vectorised over arms.

For x in [0, 1], with mean_i and var_i the running estimates (1/2 + sum x) / (i + 1) and (1/4 + sum v) / (i + 1),

    lambda_i = min(1/2, sqrt(2 ln(1/alpha) / (var_{i-1} i ln(1 + i)))),   psi(l) = -ln(1 - l) - l,
    v_i = (x_i - mean_{i-1})^2,
    lower = sum lambda x / sum lambda - (ln(1/alpha) + sum v psi(lambda)) / sum lambda,

and the upper bound is that of 1 - x. Each side fails with a probability of at most alpha, whenever one looks.
Source: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", theorem 2.
"""

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class ConfidenceSequence:
    """Predictable plug-in empirical-Bernstein intervals of K arms with values in [0, 1].

    Args:
        arms: K.
        alpha: Probability with which either side of one arm's interval may ever fail, in (0, 1).
    """

    arms: int
    alpha: float
    count: Floats = field(init=False)  # [K] each
    total: Floats = field(init=False)  # sum of x
    spread: Floats = field(init=False)  # sum of v
    weight: Floats = field(init=False)  # sum of lambda
    weighted: Floats = field(init=False)  # sum of lambda x
    penalty: Floats = field(init=False)  # sum of v psi(lambda)

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha must be in (0, 1), got {self.alpha}")
        for name in self.sums():
            setattr(self, name, np.zeros(self.arms))

    @classmethod
    def sums(cls) -> list[str]:
        """Names of the arrays that make up the state."""
        return [array.name for array in fields(cls) if not array.init]

    def add(self, arms: Ints, values: Floats) -> None:
        """Takes in one value of each of some different arms, [n], in [0, 1].

        Raises:
            ValueError: For a value outside [0, 1].
        """
        if ((values < 0) | (values > 1)).any():
            raise ValueError("values of a confidence sequence must be in [0, 1]")
        count = self.count[arms] + 1  # i; mean and variance are those of the i - 1 values before this one
        mean = (0.5 + self.total[arms]) / count
        variance = (0.25 + self.spread[arms]) / count
        rate = np.minimum(0.5, np.sqrt(2 * np.log(1 / self.alpha) / (variance * count * np.log1p(count))))
        squared = (values - mean) ** 2
        # lambda_i and mean_{i-1} must not depend on x_i, or theorem 2 fails: sums take x_i in only from here on.
        self.count[arms] = count
        self.total[arms] += values
        self.spread[arms] += (values - (0.5 + self.total[arms]) / (count + 1)) ** 2
        self.weight[arms] += rate
        self.weighted[arms] += rate * values
        self.penalty[arms] += squared * (-np.log1p(-rate) - rate)

    def bounds(self) -> tuple[Floats, Floats]:
        """[K] each, lower and upper; 0 and 1 where nothing is known."""
        weight = np.where(self.weight > 0, self.weight, 1.0)
        centre = self.weighted / weight
        width = np.where(self.weight > 0, (np.log(1 / self.alpha) + self.penalty) / weight, np.inf)
        return np.clip(centre - width, 0, 1), np.clip(centre + width, 0, 1)
