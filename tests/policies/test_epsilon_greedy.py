"""Epsilon-greedy in numbers worked out by hand."""

import numpy as np
import pytest

from hf_mabprune.policies.epsilon_greedy import EpsilonGreedy


def test_greedy_takes_the_best_means(pull) -> None:
    policy = EpsilonGreedy(arms=4, epsilon=0.0)
    pull(policy, [0, 0, 1, 3], [1.0, 3.0, 0.0, 7.0])
    # Means 2, 0, none, 7; the arm without pulls counts as (2 + 0 + 7) / 3 = 3.
    assert policy.select(1).tolist() == [3]
    assert policy.select(2).tolist() == [2, 3]
    assert policy.select(3).tolist() == [0, 2, 3]


def test_epsilon_of_the_choices_are_uniform(pull) -> None:
    policy = EpsilonGreedy(arms=4, epsilon=0.4)
    pull(policy, [0, 1, 2, 3], [0.0, 0.0, 1.0, 0.0])
    chosen = np.bincount([policy.select(1)[0] for _ in range(4000)], minlength=4) / 4000
    # The best arm: 0.6 + 0.4 / 4 = 0.7; each other: 0.4 / 4 = 0.1.
    assert chosen == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.02)


def test_slots_explore_independently(pull) -> None:
    policy = EpsilonGreedy(arms=4, epsilon=0.5)
    pull(policy, [0, 1, 2, 3], [3.0, 2.0, 1.0, 0.0])
    chosen = [tuple(policy.select(2)) for _ in range(4000)]
    # Both slots greedy, 1/4: always {0, 1}. One, 1/2: a uniform arm and the best other one, {0, 1} in 2 of 4 cases.
    # None, 1/4: {0, 1} is 1 of 6 pairs. Sum 1/4 + 1/4 + 1/24. Pair {2, 3}: 1/24.
    assert chosen.count((0, 1)) / 4000 == pytest.approx(0.54167, abs=0.025)
    assert chosen.count((2, 3)) / 4000 == pytest.approx(0.04167, abs=0.012)


def test_decay_is_epsilon_arms_over_plays(pull) -> None:
    policy = EpsilonGreedy(arms=4, epsilon=0.5, decay=True)
    assert policy.probability() == 1.0  # min(1, 0.5 * 4 / 1)
    pull(policy, [0, 1, 2], [0.0, 0.0, 0.0])
    assert policy.probability() == 0.5  # 0.5 * 4 / 4
    pull(policy, [0, 1, 2, 3], [0.0, 0.0, 0.0, 0.0])
    assert policy.probability() == 0.25  # 0.5 * 4 / 8


@pytest.mark.parametrize("epsilon", [1.3, -0.1, float("nan")])
def test_epsilon_is_a_probability(epsilon: float) -> None:
    with pytest.raises(ValueError, match=rf"epsilon must be in \[0, 1\], got {epsilon}"):
        EpsilonGreedy(arms=2, epsilon=epsilon)


def test_with_decay_epsilon_may_exceed_one_but_not_be_negative() -> None:
    assert EpsilonGreedy(arms=2, epsilon=5.0, decay=True).probability() == 1.0
    with pytest.raises(ValueError, match="epsilon must be finite and at least 0, got -1"):
        EpsilonGreedy(arms=2, epsilon=-1.0, decay=True)
