"""Searches with fast and with reference pulls select the same arms, also where one takes up the other."""

import numpy as np
import pytest

from hf_mabprune.config import PruneConfig, SearchConfig, TargetConfig
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.policies import POLICIES
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.loop import Search
from hf_mabprune.search.run import make_policy
from hf_mabprune.selection.layouts import make_plans
from hf_mabprune.selection.target import make_plan
from hf_mabprune.session import open_session
from tests.problems import arms_of, limits, problem
from tests.tiny_sizes import UNLIKE


def finished_order(search: Search) -> np.ndarray:
    for _ in search.run():
        pass
    return search.finished().order


def searches(model_type: str) -> tuple[Search, Search]:
    """The same search with either engine, in double precision, where rounding is far below what sets arms apart."""
    model, task, batches, _ = problem(model_type)
    model.double()
    arms = arms_of(model, 4, batches)
    target = TargetConfig(neurons=0.5, heads=0.5, **({"experts": 0.25} if model_type == "mixtral" else {}))
    plan = make_plan(arms, target, {"parameters": 1, "macs": 1}, "per_layer", limits(arms))
    config = SearchConfig(rounds=2, pulls_per_arm=2)
    reference, replay = (
        Search(engine(model, arms, task, batches), POLICIES.get("ucb1")(arms=len(arms), seed=0), [plan], config)
        for engine in (ReferencePulls, ReplayPulls)
    )
    return reference, replay


@pytest.mark.parametrize("model_type", UNLIKE)
def test_fast_and_reference_pulls_select_the_same_arms(model_type: str) -> None:
    reference, replay = searches(model_type)
    assert np.array_equal(finished_order(reference), finished_order(replay))


@pytest.mark.parametrize("model_type", UNLIKE)
def test_a_search_resumed_with_the_other_engine_selects_the_same_arms(model_type: str) -> None:
    expected = finished_order(searches(model_type)[0])
    for steps in (4,) if model_type in ("t5", "mixtral") else (1, 4):
        first, second = searches(model_type)
        for begun, other in ((first, second), (second, first)):
            for _ in zip(range(steps), begun.run(), strict=False):
                pass
            other.load_state_dict(begun.state_dict())
            assert np.array_equal(finished_order(other), expected)
            first, second = searches(model_type)


@pytest.mark.slow
def test_fast_and_reference_pulls_select_the_same_arms_in_the_quickstart() -> None:
    settings = PruneConfig.from_yaml("configs/quickstart.yaml")
    session = open_session(settings, make_accelerator())
    session.dense.double()
    plan = make_plans(session.dense, session.arms, session.totals, settings.prune).search
    orders = []
    for engine in (ReferencePulls, ReplayPulls):
        pulls = engine(
            session.dense, session.arms, session.task, session.batches["calibration"], settings.search.reward
        )
        orders.append(finished_order(Search(pulls, make_policy(settings, len(session.arms)), [plan], settings.search)))
    assert np.array_equal(*orders)
