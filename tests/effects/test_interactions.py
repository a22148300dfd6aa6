"""What removing one arm does to the worth of the others: against real removals, and on made-up arms."""

import numpy as np
import pytest

from hf_mabprune.config import TargetConfig
from hf_mabprune.effects.interactions import RIDGE, Interactions
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, small_effects, some_context
from tests.seeds import moved
from tests.tiny_models import head_of


def mean_kl(pulls: ReplayPulls, kept: np.ndarray) -> float:
    return float(np.mean([pulls.observe(batch, kept).kl.mean().item() for batch in range(len(pulls.batches))]))


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "vit"])
def test_the_kl_of_sets_is_predicted(model_type: str, in_context: bool) -> None:
    pulls = small_effects(model_type)
    count = len(pulls.arms)
    kept = some_context(pulls.arms) if in_context else np.ones(count, dtype=bool)
    pulls.set_context(kept)
    found = Interactions(*pulls.effects(samples=200, seed=0))
    now, rng = mean_kl(pulls, kept), np.random.default_rng(moved(0))
    predicted, exact = [], []
    for size in (1, 2, 5):
        for _ in range(6):
            gone = rng.choice(np.flatnonzero(kept), size, replace=False)
            inner = found.effects[gone] @ found.effects[gone].T / found.examples.sum()
            predicted.append(-found.rewards()[gone].sum() + (inner.sum() - np.trace(inner)) / 2)
            after = kept.copy()
            after[gone] = False
            exact.append(mean_kl(pulls, after) - now)
    tolerance = 0.15 if head_of(model_type) == "AutoModelForCausalLM" else 0.02  # labels are drawn for language models
    assert np.abs(np.array(predicted) - exact).max() <= tolerance * np.abs(exact).max()


@pytest.mark.parametrize("in_context", [False, True])
def test_controls_have_the_rewards_as_their_mean(in_context: bool) -> None:
    pulls = small_effects("bert")
    if in_context:
        pulls.set_context(some_context(pulls.arms))
    found = Interactions(*pulls.effects(samples=2, seed=0))
    arms = np.arange(len(pulls.arms))
    controls = np.stack([found.controls(arms, np.full(len(arms), batch)) for batch in range(len(pulls.batches))])
    np.testing.assert_allclose(np.average(controls, axis=0, weights=found.examples), found.rewards(), rtol=1e-4)
    values = np.stack([pulls.pull(arms, np.full(len(arms), batch))[:, 0] for batch in range(len(pulls.batches))])
    alive = pulls.kept
    assert np.abs(values - controls)[:, alive].max() <= 0.05 * np.abs(values)[:, alive].max()


def made_up(effects: list[list[float]]) -> Interactions:
    array = np.array(effects, dtype=np.float32)
    dimensions = array.shape[1]
    return Interactions(array, np.zeros((len(array), 1)), np.zeros(dimensions, dtype=int), np.array([dimensions]))


def plan_for(count: int, fraction: float) -> Plan:
    pulls = small_effects("bert")
    arms = pulls.arms
    rows = np.flatnonzero((arms.kind == "neuron") & (arms.layer == 0))[:count]
    table = type(arms)(**{name: getattr(arms, name)[rows] for name in arms.__dataclass_fields__})
    totals = {"parameters": 1, "macs": 1}
    return make_plan(table, TargetConfig(neurons=fraction), totals, "per_layer", limits(table))


def test_of_two_that_stand_in_for_each_other_one_stays_and_what_cancels_goes_together() -> None:
    twins = made_up([[1.0, 0.0], [1.0, 0.0], [0.0, 1.3]])
    kept, removed, scores = twins.remove(plan_for(3, 0.67), twins.rewards(), np.ones(3, dtype=bool), 0.0, 1.0)
    assert sorted(removed) == [0, 2] and kept.tolist() == [False, True, False]
    own = -(0.5 + RIDGE) * np.array([1.0, 1.0, 1.69]) / 2
    np.testing.assert_allclose(scores, [own[0], own[1] - 0.5, own[2]], rtol=1e-6)
    opposite = made_up([[2.0, 0.0], [-2.0, 0.1], [0.0, 2.1]])
    _, removed, _ = opposite.remove(plan_for(3, 0.67), opposite.rewards(), np.ones(3, dtype=bool), 0.0, 1.0)
    assert sorted(removed) == [0, 1]
