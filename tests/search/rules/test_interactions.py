"""Removals with interactions: a search that is interrupted ends as if it had not been."""

import numpy as np
import pytest
from accelerate import Accelerator

from hf_mabprune.config import SearchConfig, TargetConfig
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.policies import POLICIES
from hf_mabprune.search.loop import Search
from hf_mabprune.search.rules.interactions import WithInteractions
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, problem


@pytest.mark.parametrize("policy", ["race", "ucb1"])
def test_a_search_that_is_taken_up_again_ends_the_same_and_pays_once(policy: str) -> None:
    def search() -> Search:
        model, task, batches, arms = problem("bert")
        target = TargetConfig(neurons=0.5, heads=0.5)
        plan = make_plan(arms, target, {"parameters": 1, "macs": 1}, "per_layer", limits(arms))
        config = SearchConfig(rounds=2, pulls_per_arm=2, arms_per_step=3)
        pulls = ReplayPulls(model, arms, task, batches, accelerator=Accelerator(cpu=True))
        policy_made = POLICIES.get(policy)(arms=len(arms), seed=0)
        return Search(pulls, policy_made, [plan], config, WithInteractions())

    whole = search()
    steps = sum(1 for _ in whole.run())
    for stop in range(1, steps, 3):
        first, second = search(), search()
        for _ in zip(range(stop), first.run(), strict=False):
            pass
        second.load_state_dict(first.state_dict())
        for _ in second.run():
            pass
        assert np.array_equal(second.finished().order, whole.finished().order)
        assert second.pulls.cost.backward_tokens == whole.pulls.cost.backward_tokens
        assert second.pulls.cost.pulls == whole.pulls.cost.pulls
