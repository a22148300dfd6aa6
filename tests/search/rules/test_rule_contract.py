"""What every removal rule keeps to."""

import dataclasses

import numpy as np
import pytest

from hf_mabprune.config import SearchConfig, TargetConfig
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.refit_costs import RefitCosts
from hf_mabprune.policies import POLICIES
from hf_mabprune.search.loop import Search
from hf_mabprune.search.rules import RULES, Rule
from hf_mabprune.search.rules.refit import Refit
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, problem


def prepared(name: str, model_type: str) -> tuple[Rule, Search]:
    """A rule, and a search that goes by it."""
    model, task, batches, arms = problem(model_type)
    totals = {"parameters": 1, "macs": 1}
    target = TargetConfig(neurons=0.5, heads=0.5, **({"experts": 0.25} if model_type == "mixtral" else {}))
    plan = make_plan(arms, target, totals, "per_layer", limits(arms))
    rule = RULES.get(name)()
    if isinstance(rule, Refit):
        rule.costs = RefitCosts.of(model, arms, task, batches)
        rule.stand_ins = rule.costs.stand_ins
    pulls = ReplayPulls(model, arms, task, batches, stand_ins=rule.stand_ins)
    policy = POLICIES.get("sweep")(arms=len(arms), seed=0)
    return rule, Search(pulls, policy, [plan], SearchConfig(pulls_per_arm=1), rule)


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "mixtral", "t5", "vit"])
@pytest.mark.parametrize("name", RULES.names())
def test_a_search_by_any_rule_reaches_the_target_in_a_nested_order(name: str, model_type: str) -> None:
    rule, search = prepared(name, model_type)
    assert search.rounds == rule.default_rounds
    for _ in search.run():
        pass
    result = search.finished()
    gone = ~result.kept
    assert abs(gone[search.plan.arms.of_kind("neuron")].mean() - 0.5) < 0.2
    assert gone[search.plan.arms.of_kind("expert")].sum() == (2 if model_type == "mixtral" else 0)
    assert sorted(result.order) == list(range(len(gone)))
    assert set(result.order[: gone.sum()]) == set(np.flatnonzero(gone))
    assert ((result.removed_round > 0) == gone).all() and np.isfinite(result.scores).all()


@pytest.mark.parametrize("name", RULES.names())
def test_rules_that_estimate_know_every_arm_before_a_pull(name: str) -> None:
    rule, search = prepared(name, "bert")
    known = rule.begin(search.pulls, 1)
    assert (known is not None) == rule.estimates
    if known is not None:
        assert known.shape == (len(search.plan.arms),) and np.isfinite(known).all()
        controls = rule.controls(np.array([0, 1]), np.array([0, 1]))
        assert controls is not None and controls.shape == (2,)


@pytest.mark.parametrize("name", RULES.names())
def test_options_have_a_help_text(name: str) -> None:
    for field in dataclasses.fields(RULES.get(name)):
        assert not field.init or field.metadata.get("help"), field.name
