"""Hedge in numbers worked out by hand."""

import numpy as np
import pytest

from hf_mabprune.policies.hedge import Hedge
from tests.seeds import moved


def test_weights_are_exponential_in_the_sum_of_rewards(pull, unmapped) -> None:
    policy = unmapped(Hedge(arms=3, eta=0.5))
    pull(policy, [0, 0, 1], [0.2, 0.6, 1.0])
    # ln w = 0.5 * 0.8, 0.5 * 1, 0: w = 1.491825, 1.648721, 1, sum 4.140546.
    assert policy.log_weights() == pytest.approx([0.4, 0.5, 0.0])
    assert policy.probabilities() == pytest.approx([0.360297, 0.398189, 0.241514], abs=1e-6)


def test_several_rounds_multiply(pull, unmapped) -> None:
    rewards = np.random.default_rng(moved(0)).uniform(size=(30, 4))
    policy = unmapped(Hedge(arms=4, eta=0.3))
    weights = np.ones(4)
    for row in rewards:
        pull(policy, range(4), row)
        weights *= np.exp(0.3 * row)
        assert policy.probabilities() == pytest.approx(weights / weights.sum())


def test_memory_scales_the_log_weights(pull, unmapped) -> None:
    policy = unmapped(Hedge(arms=3, eta=0.5, memory=0.25))
    pull(policy, [0, 0, 1], [0.2, 0.6, 1.0])
    policy.new_context(np.array([True, True, False]))
    assert policy.log_weights()[:2] == pytest.approx([0.1, 0.125])
    # e^0.1 / (e^0.1 + e^0.125) = 1 / (1 + e^0.025)
    assert policy.probabilities() == pytest.approx([0.493750, 0.506250, 0.0], abs=1e-6)


def test_a_provisional_map_leaves_nothing_behind(pull) -> None:
    """The first rewards, seen with hardly a range to map by, weigh as if the settled map had been known."""
    policy = Hedge(arms=21, eta=1.0)
    for arm in range(21):
        pull(policy, [arm], [float(arm)])
    # 5th and 95th percentile 1 and 19: ln w = (a - 1) / 18, clipped.
    assert policy.log_weights() == pytest.approx(np.clip((np.arange(21) - 1) / 18, 0, 1))


def test_choices_follow_the_probabilities(pull, unmapped) -> None:
    policy = unmapped(Hedge(arms=3, eta=0.5))
    pull(policy, [0, 0, 1], [0.2, 0.6, 1.0])
    chosen = np.bincount([policy.select(1)[0] for _ in range(4000)], minlength=3) / 4000
    assert chosen == pytest.approx([0.360297, 0.398189, 0.241514], abs=0.025)


def test_eta_is_positive() -> None:
    with pytest.raises(ValueError, match="eta must be finite and above 0, got 0"):
        Hedge(arms=2, eta=0.0)
