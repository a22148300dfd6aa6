"""How much is added to the diagonal of second moments before they are inverted.

Moments are sums of products, rounded. Where inputs hardly vary (a dead layer with biases, texts that are all equal, a
value projection of zeros) what is left of their covariance is rounding, which need not be positive definite, and a
ridge that is relative to its diagonal is no larger. Then the ridge grows until it is. Pure.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch

Solution = TypeVar("Solution")
TENFOLD = 10.0
STEPS = 40  # from the rounding of the largest entry up to far beyond the sum of all of a row


def damped(solve: Callable[[float], Solution | None], first: float, largest: float) -> Solution:
    """Solves with the smallest ridge that will do: the first, or as many times tenfold as it takes.

    Args:
        solve: Function of a ridge that gives a solution, or None where the moments with it are not positive definite;
            a `LinAlgError` says the same.
        first: Ridge that is tried first; where it will do, no other is.
        largest: Largest absolute entry of the moments, whose rounding the second ridge is at least.

    Raises:
        ValueError: If no ridge will do, since entries are not finite.
    """
    strength, least = first, np.finfo(float).eps * largest
    for _ in range(STEPS if np.isfinite(largest) else 0):
        with suppress(np.linalg.LinAlgError, torch.linalg.LinAlgError):
            if (solution := solve(strength)) is not None:
                return solution
        strength = max(TENFOLD * strength, least)
    raise ValueError(
        f"second moments of up to {largest:.3g} cannot be inverted: look for broken weights or calibration examples"
    )
