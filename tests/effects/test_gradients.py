"""Gradient estimates against exact pulls, and against formulas worked out independently."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of
from hf_mabprune.effects.gradients import estimate
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.reference import ReferencePulls
from tests.problems import problem, rounding, shrink, some_context, whole
from tests.shows import Shows
from tests.tiny_models import head_of

TYPES = ("bert", "llama", "gpt2", "vit")  # whose arms all can be made small: a router is not
JUMPS = ("t5", "opt", "nemotron")  # ReLU has a corner at zero


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("reward", ["kl", "loss", "squared"])
@pytest.mark.parametrize("in_context", [False, True])
def test_estimates_are_the_limit_of_small_arms(model_type: str, reward: str, in_context: bool) -> None:
    """With all output projections scaled down, second-order terms vanish beside what is estimated."""
    model, task, batches, arms = problem(model_type)
    model.double()
    shrink(model, 1e-3)
    kept = some_context(arms) if in_context else np.ones(len(arms), dtype=bool)
    dense = task.readout(model, batches[0])
    found, backwards = estimate(model, arms, task, batches[0], reward, kept, dense, samples=400)
    pulls = ReferencePulls(model, arms, task, batches[:1], reward)
    pulls.set_context(kept)
    rows = np.flatnonzero(kept)
    exact = pulls.pull(rows, np.zeros(len(rows), dtype=int))[:, 0]
    drawn = reward == "kl" and dense.outputs.shape[1] > 1  # labels are drawn there
    tolerance, small = 0.15 if drawn else 1e-2, 2e-2 if drawn and model_type == "gpt2" else 1e-3
    np.testing.assert_allclose(found.mean(1).numpy()[rows], exact, rtol=tolerance, atol=small * np.abs(exact).max())
    assert not found[~kept].any()
    if model_type in ("bert", "vit"):
        assert backwards == (2 if reward == "kl" and in_context else 1)


def one_of_a_kind(model: PreTrainedModel) -> list[str]:
    """The first site of neurons, of heads, and so for every stack and every attention of a layer."""
    found: dict[tuple[str, str], str] = {}
    for site in architecture_of(model).sites(model):
        what = site.stack.layers, site.spec.output
        read = not site.stack.layers.endswith("head")  # that of images is not, by a classifier
        if read and what not in found:  # behind a norm, one that is alone at its site has no slope
            found[what] = site.name
    return list(found.values())


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES.names() if head_of(name) != "AutoModel"])
def test_derivatives_are_differences_of_what_gates_do(model_type: str, in_context: bool, shows: Shows) -> None:
    """By a gate a little above and below one: a factor of units, or of the odds that a router gives an expert.

    The router of phimoe gives an expert all of a choice, whatever its odds. An example on which the step sends a
    position to another expert, or takes a unit past zero, may differ.
    """
    model, task, batches, arms = problem(model_type)
    shows("gradients", model_type, arms.kinds())
    model.double()
    kept = some_context(arms) if in_context else whole(arms)
    found, _ = estimate(model, arms, task, batches[0], "loss", kept)
    # What norms in float32 round is a larger part of a smaller difference.
    step, share = (1e-3, 5e-3) if rounding(model) < 1e-10 else (1e-2, 5e-2)
    masks = keep_masks(model, arms.kept_units(kept))
    rows, jumps = dict(arms.groups()), model_type in JUMPS or "expert" in arms.kind  # routers send positions elsewhere
    for name in one_of_a_kind(model):
        arm, losses = int(rows[name][kept[rows[name]]][-1]), []
        for gate in (1 + step, 1 - step):
            mask = masks[name].clone()
            mask[int(arms.start[arm]) : int(arms.stop[arm])] = gate
            with torch.no_grad(), masked(model, masks={**masks, name: mask}):
                losses.append(task.readout(model, batches[0]).losses())
        slopes = (losses[0] - losses[1]) / (2 * step)
        assert slopes.abs().max() > 1e-5 or (model_type == "phimoe" and name.endswith("router")), name
        close = torch.isclose(found[arm], slopes, rtol=1e-3, atol=share * float(slopes.abs().max()))
        assert close.double().mean() >= (0.5 if jumps else 1.0), name


@pytest.mark.parametrize("shift", [0.25, 4.0])
def test_a_gate_of_an_expert_is_a_factor_of_its_odds(shift: float) -> None:
    model, task, batches, _ = problem("mixtral")
    base = model.base_model
    gate = torch.ones(4)
    gate[1] = shift
    router = base.layers[0].mlp.gate

    def moved(module: torch.nn.Module, arguments: tuple, output: tuple) -> tuple:
        odds = (output[0].double().softmax(-1) * gate.double()).float()  # of the router's own logits
        values, index = odds.topk(2, dim=-1)
        return output[0], values / values.sum(-1, keepdim=True), index

    with torch.no_grad(), masked(model, masks={"layers.0.mlp.gate": gate}):
        found = task.readout(model, batches[0]).outputs
    handle = router.register_forward_hook(moved)
    with torch.no_grad():
        expected = task.readout(model, batches[0]).outputs
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert (found - task.readout(model, batches[0]).outputs).abs().max() > 1e-3


def test_two_classes_need_one_backward_and_give_p_q_times_the_squared_slope() -> None:
    model, task, batches, arms = problem("bert")
    model.double()
    found, backwards = estimate(model, arms, task, batches[0], "kl")
    assert backwards == 1
    arm, step = 3, 1e-4
    masks = keep_masks(model, arms.kept_units(np.ones(len(arms), dtype=bool)))
    with torch.no_grad():
        logits = task.readout(model, batches[0]).outputs[:, 0]
        masks[str(arms.site[arm])][int(arms.start[arm]) : int(arms.stop[arm])] = 1 - step
        with masked(model, masks=masks):
            moved = task.readout(model, batches[0]).outputs[:, 0]
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
