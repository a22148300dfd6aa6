"""Exp3 in numbers worked out by hand, and against the textbook loop."""

import math

import numpy as np
import pytest

from hf_mabprune.policies.exp3 import Exp3
from tests.seeds import moved


def test_two_plays(pull, unmapped) -> None:
    policy = unmapped(Exp3(arms=3, gamma=0.3))
    assert policy.probabilities() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    pull(policy, [1], [0.8])
    # ln w_1 = 0.3 * 0.8 / (1/3 * 3) = 0.24; w = 1, 1.271249, 1, sum 3.271249;
    # p_1 = 0.7 * 1.271249 / 3.271249 + 0.3 / 3 = 0.372029, p_0 = 0.7 / 3.271249 + 0.1 = 0.313986.
    assert policy.log_weights() == pytest.approx([0.0, 0.24, 0.0])
    assert policy.probabilities() == pytest.approx([0.313986, 0.372029, 0.313986], abs=1e-6)
    pull(policy, [0], [0.5])
    # ln w_0 = 0.3 * 0.5 / (0.313986 * 3) = 0.159243
    assert policy.log_weights() == pytest.approx([0.159243, 0.24, 0.0], abs=1e-6)


def test_pulls_of_one_round_share_the_probabilities_from_before_it(pull, unmapped) -> None:
    policy = unmapped(Exp3(arms=3, gamma=0.3))
    pull(policy, [1, 0, 1], [0.8, 0.5, 0.5])
    # All with p = 1/3: ln w_1 = 0.3 * (0.8 + 0.5), ln w_0 = 0.3 * 0.5.
    assert policy.log_weights() == pytest.approx([0.15, 0.39, 0.0])


def test_one_arm_a_round_is_the_textbook_loop(pull, unmapped) -> None:
    rng = np.random.default_rng(moved(0))
    policy = unmapped(Exp3(arms=5, gamma=0.2))
    weights = [1.0] * 5
    for _ in range(200):
        probabilities = [0.8 * w / sum(weights) + 0.2 / 5 for w in weights]
        assert policy.probabilities() == pytest.approx(probabilities)
        arm, reward = int(policy.select(1)[0]), rng.uniform()
        weights[arm] *= math.exp(0.2 * reward / (probabilities[arm] * 5))
        pull(policy, [arm], [reward])


def test_a_provisional_map_leaves_nothing_behind(pull) -> None:
    """All arms have p = 1/21 in the one round, so that ln w = gamma u(reward) by the settled map."""
    policy = Exp3(arms=21, gamma=0.5)
    pull(policy, range(21), np.arange(21.0))
    assert policy.log_weights() == pytest.approx(0.5 * np.clip((np.arange(21) - 1) / 18, 0, 1))


def test_rewards_are_weighted_by_the_probabilities_they_were_drawn_with(pull) -> None:
    policy = Exp3(arms=3, gamma=0.5)
    pull(policy, [0], [1.0])
    drawn_with = policy.probabilities()  # the map has no range yet and calls every reward 0.5
    assert drawn_with[0] > drawn_with[1]
    pull(policy, [1], [2.0])
    # The map now runs from 1.05 to 1.95 and clips to 0 and 1: ln w_0 = 0, ln w_1 = 0.5 / (3 p_1).
    assert policy.log_weights() == pytest.approx([0.0, 0.5 / (3 * drawn_with[1]), 0.0])


def test_memory_scales_the_log_weights_and_removed_arms_leave_the_count(pull) -> None:
    policy = Exp3(arms=3, gamma=0.3, memory=0.5)
    pull(policy, [1], [1.6])
    policy.new_context(np.array([True, True, False]))
    policy.low, policy.high = -1.6, 2.4  # 1.6 -> 3.2 / 4 = 0.8
    assert policy.log_weights() == pytest.approx([0.0, 0.12, 0.0])
    # p_0 = 0.7 / (1 + e^0.12) + 0.3 / 2 = 0.7 * 0.470036 + 0.15
    assert policy.probabilities() == pytest.approx([0.479025, 0.520975, 0.0], abs=1e-6)


def test_no_living_arm_falls_below_its_share_of_exploration(pull, unmapped) -> None:
    policy = unmapped(Exp3(arms=4, gamma=0.2))
    for _ in range(300):
        pull(policy, [0], [1.0])
    assert policy.probabilities() == pytest.approx([0.85, 0.05, 0.05, 0.05])  # 0.8 + 0.2 / 4, and 0.2 / 4
    chosen = np.bincount([policy.select(1)[0] for _ in range(4000)], minlength=4) / 4000
    assert chosen == pytest.approx([0.85, 0.05, 0.05, 0.05], abs=0.02)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gamma_is_a_share(gamma: float) -> None:
    with pytest.raises(ValueError, match=rf"gamma must be in \(0, 1\], got {gamma}"):
        Exp3(arms=2, gamma=gamma)
