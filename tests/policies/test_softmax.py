"""Softmax in numbers worked out by hand."""

import numpy as np
import pytest

from hf_mabprune.policies.softmax import Softmax


def test_probabilities_are_exponential_in_the_mean(pull, unmapped) -> None:
    policy = unmapped(Softmax(arms=2, tau=0.5))
    pull(policy, [0, 1, 1], [0.2, 0.5, 0.7])
    # Means 0.2 and 0.6: p_0 = 1 / (1 + exp((0.6 - 0.2) / 0.5)) = 1 / (1 + e^0.8) = 1 / 3.225541
    assert policy.probabilities() == pytest.approx([0.310026, 0.689974], abs=1e-6)


def test_rewards_are_mapped_so_that_their_unit_does_not_matter(pull) -> None:
    small, large = Softmax(arms=5), Softmax(arms=5)
    rewards = np.array([0.1, 0.7, 0.3, 0.9, 0.2])
    pull(small, range(5), 1e-6 * rewards - 3e-6)
    pull(large, range(5), 1e3 * rewards)
    assert small.probabilities() == pytest.approx(large.probabilities())


def test_temperature_decays_with_the_logarithm_of_the_plays(pull, unmapped) -> None:
    policy = unmapped(Softmax(arms=2, tau=0.5, decay=True))
    pull(policy, [0, 1], [0.2, 0.6])
    assert policy.probabilities()[0] == pytest.approx(0.310026, abs=1e-6)  # ln 2 < 1: tau as it is
    pull(policy, [0, 0, 0, 1, 1, 1], [0.2, 0.2, 0.2, 0.6, 0.6, 0.6])
    # t = 8: tau = 0.5 / ln 8 = 0.240449; p_0 = 1 / (1 + exp(0.4 / 0.240449)) = 1 / (1 + e^1.663553) = 1 / 6.278028
    assert policy.probabilities()[0] == pytest.approx(0.159286, abs=1e-6)


def test_removed_arms_have_no_probability(pull, unmapped) -> None:
    policy = unmapped(Softmax(arms=3, tau=0.5))
    pull(policy, [0, 1, 2], [0.2, 1.0, 0.6])
    policy.new_context(np.array([True, False, True]))
    assert policy.probabilities() == pytest.approx([0.310026, 0.0, 0.689974], abs=1e-6)


def test_choices_follow_the_probabilities(pull, unmapped) -> None:
    policy = unmapped(Softmax(arms=2, tau=0.5))
    pull(policy, [0, 1], [0.2, 0.6])
    chosen = [policy.select(1)[0] for _ in range(4000)]
    assert np.mean(chosen) == pytest.approx(0.689974, abs=0.02)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("inf")])
def test_temperature_is_positive(tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau must be finite and above 0, got {tau}"):
        Softmax(arms=2, tau=tau)
