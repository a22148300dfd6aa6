"""Confidence sequences: against the formula by hand, and their promise on values with known means."""

import numpy as np
import pytest

from hf_mabprune.policies.confidence_sequence import ConfidenceSequence
from tests.seeds import moved


def by_hand(values: list[float], alpha: float) -> tuple[float, float]:
    """One arm's bounds, written out from the paper."""
    mean, variance, lambdas, spread = 0.5, 0.25, [], 0.0
    penalty = weighted = total = 0.0
    for i, x in enumerate(values, start=1):
        rate = min(0.5, np.sqrt(2 * np.log(1 / alpha) / (variance * i * np.log(1 + i))))
        lambdas.append(rate)
        weighted += rate * x
        penalty += (x - mean) ** 2 * (-np.log(1 - rate) - rate)
        total += x
        mean = (0.5 + total) / (i + 1)
        spread += (x - mean) ** 2
        variance = (0.25 + spread) / (i + 1)
    width = (np.log(1 / alpha) + penalty) / sum(lambdas)
    centre = weighted / sum(lambdas)
    return max(0.0, centre - width), min(1.0, centre + width)


def test_the_bounds_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(moved(0))
    values = rng.beta(2, 5, size=(60, 3))
    sequence = ConfidenceSequence(3, 0.01)
    for row in values:
        sequence.add(np.arange(3), row)
    lower, upper = sequence.bounds()
    for arm in range(3):
        assert (lower[arm], upper[arm]) == pytest.approx(by_hand(values[:, arm].tolist(), 0.01), abs=1e-12)


def test_nothing_is_known_before_the_first_value_and_values_are_bounded() -> None:
    sequence = ConfidenceSequence(2, 0.05)
    sequence.add(np.array([1]), np.array([0.3]))
    assert [bound[0] for bound in sequence.bounds()] == [0.0, 1.0]
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        sequence.add(np.array([0]), np.array([1.2]))
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\)"):
        ConfidenceSequence(2, 1.0)


def test_the_means_of_all_arms_are_inside_at_all_times() -> None:
    """200 runs of 20 arms and 200 values: a run fails if any arm leaves its interval once."""
    runs, arms, length, delta = 200, 20, 200, 0.05
    rng = np.random.default_rng(moved(1))
    means = rng.uniform(0.05, 0.95, size=(runs, arms))
    sequence = ConfidenceSequence(runs * arms, delta / (2 * arms))
    truth, everyone = means.ravel(), np.arange(runs * arms)
    inside = np.ones(runs * arms, dtype=bool)
    for _ in range(length):
        sequence.add(everyone, rng.beta(8 * truth, 8 * (1 - truth)))
        lower, upper = sequence.bounds()
        inside &= (lower <= truth) & (truth <= upper)
    assert inside.reshape(runs, arms).all(1).mean() >= 1 - delta
    variance = truth * (1 - truth) / 9
    log = np.log(4 * arms / delta)
    fixed = 2 * (np.sqrt(2 * variance * log / length) + 7 * log / (3 * (length - 1)))  # Maurer & Pontil 2009
    assert np.median((upper - lower) / fixed) <= 2
