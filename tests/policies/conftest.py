"""What the policy tests share: a short way to hand rewards to a policy, and a policy whose map to [0, 1] is known."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hf_mabprune.policies import Policy

Pull = Callable[[Policy, Sequence[int], Sequence[float]], None]


@pytest.fixture
def pull() -> Pull:
    """Updates a policy with mean rewards; the second moments are those of a constant reward."""

    def update(policy: Policy, arms: Sequence[int], rewards: Sequence[float]) -> None:
        means = np.asarray(rewards, dtype=float)
        policy.update(np.asarray(arms), np.stack([means, means**2], axis=1))

    return update


@pytest.fixture
def unmapped() -> Callable[[Policy], Policy]:
    """Makes the map to [0, 1] the identity, so that rewards in [0, 1] enter the textbook formulas as they are."""

    def fix(policy: Policy) -> Policy:
        policy.low, policy.high, policy.frozen = 0.0, 1.0, True
        return policy

    return fix
