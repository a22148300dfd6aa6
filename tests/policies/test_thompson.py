"""Thompson sampling in numbers worked out by hand."""

import numpy as np
import pytest

from hf_mabprune.policies.thompson import Thompson


def test_gaussian_posterior(pull) -> None:
    policy = Thompson(arms=3)
    pull(policy, [0, 0, 1], [1.0, 3.0, 5.0])
    mean, deviation = policy.gaussian()
    # Prior of one pull: M = (1 + 3 + 5) / 3 = 3, V = (1 + 9 + 25) / 3 - 9 = 8/3.
    # Arm 0: m = (4 + 3) / 3; n var = 1 + 9 - 2 * 4 = 2; s^2 = (2 + 8/3) / 3 = 14/9; sqrt(14/9 / 3) = sqrt(14/27).
    # Arm 1: m = (5 + 3) / 2; s^2 = (0 + 8/3) / 2 = 4/3; sqrt(4/3 / 2) = sqrt(2/3).
    # Arm 2, without pulls: the prior itself, M and sqrt(V).
    assert mean == pytest.approx([7 / 3, 4.0, 3.0])
    assert deviation == pytest.approx(np.sqrt([14 / 27, 2 / 3, 8 / 3]))


def test_a_weak_prior_leaves_the_mean_and_its_standard_error(pull) -> None:
    policy = Thompson(arms=2, prior_pulls=1e-12)
    pull(policy, [0, 0, 0, 0, 1], [1.0, 3.0, 1.0, 3.0, 50.0])
    mean, deviation = policy.gaussian()
    assert mean == pytest.approx([2.0, 50.0])
    assert deviation == pytest.approx([0.5, 0.0], abs=1e-4)  # s / sqrt(n) = 1 / 2


def test_before_any_reward_the_prior_is_standard_normal() -> None:
    mean, deviation = Thompson(arms=3).gaussian()
    assert (mean.tolist(), deviation.tolist()) == ([0.0] * 3, [1.0] * 3)


def test_choices_follow_the_gaussian_posterior(pull) -> None:
    policy = Thompson(arms=2)
    pull(policy, [0, 0, 1, 1], [0.0, 2.0, 1.0, 3.0])
    # M = 1.5, V = (0 + 4 + 1 + 9) / 4 - 2.25 = 1.25; m = (2 + 1.5) / 3 and (4 + 1.5) / 3, 2/3 apart;
    # both s^2 = (2 + 1.25) / 3, variance of a draw 1.08333 / 3 = 0.36111, of the difference 0.72222.
    # P(arm 1) = Phi(0.66667 / sqrt(0.72222)) = Phi(0.78446) = 0.7836.
    chosen = [policy.select(1)[0] for _ in range(4000)]
    assert np.mean(chosen) == pytest.approx(0.7836, abs=0.02)


def test_beta_posterior_counts_rewards_as_successes(pull, unmapped) -> None:
    policy = unmapped(Thompson(arms=3, posterior="beta"))
    pull(policy, [0, 0, 1], [0.25, 0.75, 1.0])
    successes, failures = policy.beta()
    # Arm 0: 1 + 1 and 1 + 2 - 1; arm 1: 1 + 1 and 1 + 1 - 1; arm 2: the uniform prior.
    assert successes == pytest.approx([2.0, 2.0, 1.0])
    assert failures == pytest.approx([2.0, 1.0, 1.0])


def test_choices_follow_the_beta_posterior(pull, unmapped) -> None:
    policy = unmapped(Thompson(arms=2, posterior="beta"))
    pull(policy, [1], [1.0])
    # Beta(2, 1) beats Beta(1, 1): 1 - E[1 - x] = E[x] under Beta(2, 1) = 2/3.
    chosen = [policy.select(1)[0] for _ in range(4000)]
    assert np.mean(chosen) == pytest.approx(2 / 3, abs=0.02)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="posterior must be 'gaussian' or 'beta', got 'cauchy'"):
        Thompson(arms=2, posterior="cauchy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prior_pulls must be finite and above 0, got 0"):
        Thompson(arms=2, prior_pulls=0.0)
