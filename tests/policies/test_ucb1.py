"""UCB1 in numbers worked out by hand."""

import numpy as np
import pytest

from hf_mabprune.policies.ucb1 import UCB1


def test_index_is_mean_plus_bonus(pull, unmapped) -> None:
    policy = unmapped(UCB1(arms=3))
    pull(policy, [0, 0, 1, 2], [0.2, 0.6, 0.9, 0.5])
    # t = 4, 2 ln 4 = 2.772589: bonus sqrt(2.772589 / 2) = 1.177410 for arm 0, sqrt(2.772589) = 1.665109 for 1 and 2.
    assert policy.indices() == pytest.approx([1.577410, 2.565109, 2.165109], abs=1e-6)
    assert policy.select(1).tolist() == [1]
    assert policy.select(2).tolist() == [1, 2]


def test_c_weighs_the_bonus(pull, unmapped) -> None:
    policy = unmapped(UCB1(arms=3, c=0.5))
    pull(policy, [0, 0, 1, 2], [0.2, 0.6, 0.9, 0.5])
    assert policy.indices() == pytest.approx([0.988705, 1.732555, 1.332555], abs=1e-6)
    greedy = unmapped(UCB1(arms=3, c=0.0))
    pull(greedy, [0, 1], [0.2, 0.9])
    assert greedy.indices().tolist() == [0.2, 0.9, np.inf]


def test_every_arm_is_pulled_once_before_any_is_pulled_again(pull) -> None:
    policy = UCB1(arms=10)
    for _ in range(5):
        arms = policy.select(2)
        pull(policy, arms, np.linspace(0, 1, 10)[arms])
    assert policy.pulls.tolist() == [1.0] * 10


def test_the_first_pass_is_not_in_index_order() -> None:
    assert UCB1(arms=1000, seed=0).select(100).max() > 500


def test_discounted_pulls_widen_the_bonus(pull, unmapped) -> None:
    policy = UCB1(arms=2, memory=0.5)
    pull(policy, [0] * 6 + [1] * 2, [0.5] * 8)
    policy.new_context(np.ones(2, dtype=bool))
    unmapped(policy)
    # n = 3 and 1, t = 4: bonus sqrt(2.772589 / 3) = 0.961351 and sqrt(2.772589) = 1.665109.
    assert policy.indices() == pytest.approx([1.461351, 2.165109], abs=1e-6)


def test_pulls_of_removed_arms_are_not_counted(pull, unmapped) -> None:
    policy = UCB1(arms=3, memory=1.0)
    pull(policy, [0, 0, 1, 1, 2, 2, 2, 2], [0.5] * 8)
    policy.new_context(np.array([True, True, False]))
    unmapped(policy)
    # t = 2 + 2: 0.5 + sqrt(2 ln 4 / 2) = 0.5 + 1.177410
    assert policy.indices()[:2] == pytest.approx([1.677410, 1.677410], abs=1e-6)


def test_c_is_not_negative() -> None:
    with pytest.raises(ValueError, match="c must be finite and at least 0, got -1"):
        UCB1(arms=2, c=-1.0)
