"""Gradient estimates against exact pulls, and against formulas worked out independently."""

import numpy as np
import pytest
import torch

from hf_mabprune.effects.gradients import estimate
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.reference import ReferencePulls
from tests.problems import problem, some_context

TYPES = ("bert", "llama")


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("reward", ["kl", "loss", "squared"])
@pytest.mark.parametrize("in_context", [False, True])
def test_estimates_are_the_limit_of_small_arms(model_type: str, reward: str, in_context: bool) -> None:
    """With all output projections scaled down, second-order terms vanish beside what is estimated."""
    model, task, batches, arms = problem(model_type)
    model.double()
    with torch.no_grad():
        for path in [name for name, _ in model.named_modules() if name.endswith(OUTPUTS)]:
            model.get_submodule(path).weight.mul_(1e-3)
    kept = some_context(arms) if in_context else np.ones(len(arms), dtype=bool)
    dense = task.readout(model, batches[0])
    found, backwards = estimate(model, arms, task, batches[0], reward, kept, dense, samples=400)
    pulls = ReferencePulls(model, arms, task, batches[:1], reward)
    pulls.set_context(kept)
    rows = np.flatnonzero(kept)
    exact = pulls.pull(rows, np.zeros(len(rows), dtype=int))[:, 0]
    tolerance = 0.15 if model_type == "llama" and reward == "kl" else 1e-2  # labels are drawn there
    np.testing.assert_allclose(found.mean(1).numpy()[rows], exact, rtol=tolerance, atol=1e-3 * np.abs(exact).max())
    assert not found[~kept].any()
    if model_type == "bert":
        assert backwards == (2 if reward == "kl" and in_context else 1)


OUTPUTS = ("output.dense", "down_proj", "o_proj")


def test_two_classes_need_one_backward_and_give_p_q_times_the_squared_slope() -> None:
    model, task, batches, arms = problem("bert")
    model.double()
    found, backwards = estimate(model, arms, task, batches[0], "kl")
    assert backwards == 1
    arm, step = 3, 1e-4
    masks = keep_masks(model, arms.kept_units(np.ones(len(arms), dtype=bool)))
    name = "neuron_mask" if arms.kind[arm] == "neuron" else "head_mask"
    with torch.no_grad():
        logits = task.readout(model, batches[0]).logits[:, 0]
        masks[name][int(arms.layer[arm])][int(arms.start[arm]) : int(arms.stop[arm])] = 1 - step
        with masked(model, **masks):
            moved = task.readout(model, batches[0]).logits[:, 0]
    slope = ((logits - moved)[:, 1] - (logits - moved)[:, 0]) / step
    p = logits.softmax(-1)
    expected = -0.5 * p[:, 0] * p[:, 1] * slope.square()
    torch.testing.assert_close(found[arm], expected, rtol=1e-3, atol=0)


def test_the_model_keeps_its_weights_its_flags_and_no_gradients() -> None:
    model, task, batches, arms = problem("llama")
    model.lm_head.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    estimate(model, arms, task, batches[0], "loss")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_has_no_estimate_is_refused() -> None:
    model, task, batches, arms = problem("bert")
    with pytest.raises(ValueError, match="reward 'accuracy' has no gradient estimate"):
        estimate(model, arms, task, batches[0], "accuracy")
    with pytest.raises(ValueError, match="in a context, the estimate of reward 'kl' needs"):
        estimate(model, arms, task, batches[0], "kl", some_context(arms))
