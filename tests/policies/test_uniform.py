"""Round robin."""

import numpy as np

from hf_mabprune.policies.uniform import Uniform


def test_pulls_differ_by_at_most_one(pull) -> None:
    policy = Uniform(arms=10)
    for _ in range(7):
        arms = policy.select(3)
        pull(policy, arms, arms)
    assert sorted(policy.pulls.tolist()) == [2.0] * 9 + [3.0]  # 21 pulls


def test_after_a_change_of_context_the_least_known_arms_come_first(pull) -> None:
    policy = Uniform(arms=5, memory=0.5)
    pull(policy, [0, 1, 2, 3, 4, 1, 4, 4], [0.0] * 8)
    policy.new_context(np.array([True, True, False, True, True]))
    assert policy.select(2).tolist() == [0, 3]
    assert policy.select(3).tolist() == [0, 1, 3]
