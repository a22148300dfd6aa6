"""Bounds of one look at the data: by hand, and as often right as they say."""

import numpy as np
import pytest

from hf_mabprune.evaluation.bounds import upper_mean, upper_share
from tests.seeds import moved


def test_bounds_of_one_look_hold_as_often_as_they_say() -> None:
    """2000 looks at 300 examples each."""
    rng = np.random.default_rng(moved(2))
    shares, means = rng.uniform(0.01, 0.3, 2000), rng.uniform(0.02, 0.3, 2000)
    above = [upper_share(int(rng.binomial(300, share)), 300) >= share for share in shares]
    held = [upper_mean(rng.beta(2 * mean, 2 * (1 - mean), 300)) >= mean for mean in means]
    assert np.mean(above) >= 0.94 and np.mean(held) >= 0.94
    assert np.mean(above) <= 0.98, "it is no wider than it must be"


def test_bounds_of_one_look_by_hand() -> None:
    assert upper_share(0, 10, 0.95) == pytest.approx(1 - 0.05 ** (1 / 10))
    assert upper_share(10, 10) == 1.0
    values = np.array([0.0, 0.5, 0.1, 0.2])
    log = np.log(2 / 0.05)
    expected = 0.2 + np.sqrt(2 * values.var(ddof=1) * log / 4) + 7 * log / 9
    assert upper_mean(values) == min(1.0, expected) == 1.0
    assert upper_mean(np.full(1001, 0.25)) == pytest.approx(0.25 + 7 * log / 3000)
    assert upper_mean(np.array([0.1])) == 1.0
