"""Cheap estimates of every arm's reward at once, from gradients with respect to gates: a few backwards a batch.

A gate m_a multiplies the units of arm a; removing the arm moves it from 1 to 0. With g = dL/dm_a, J = dz/dm_a and q
the softmax of the logits z in the context S, all per example:

- loss, L(S) - L(S + a): g.
- squared, (L(S) - L0)^2 - (L(S + a) - L0)^2: 2 c g - g^2, with c = L(S) - L0.
- kl, KL(S) - KL(S + a): dKL/dm_a - 1/2 J' (diag(q) - q q') J. At the unmasked model the first term is zero. The second
  equals half of E_y (d log q(y) / dm_a)^2 with y drawn from q: exact from one backward for two classes and from C for
  few, else the mean over `samples` drawn labels; over several positions, of the sum of their log-probabilities.

accuracy is a step function and has no estimate.
Symbols: K arms, B examples, P positions that count, C classes or vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable, KeepIndices
from hf_mabprune.masking import keep_masks, masked
from hf_mabprune.rewards import probabilities_of
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import NO_TARGET, Readout

Bools = NDArray[np.bool_]
Gates = dict[str, dict[int, torch.Tensor]]  # argument of `masked` -> layer -> [B, units]
FEW_CLASSES = 8
ESTIMATED = ("kl", "loss", "squared")


def estimate(
    model: PreTrainedModel,
    arms: ArmTable,
    task: Task,
    batch: Batch,
    reward: str,
    kept: Bools | None = None,
    original: Readout | None = None,
    samples: int = 2,
    seed: int = 0,
) -> tuple[torch.Tensor, int]:
    """The estimated reward of every arm on every example of a batch.

    Args:
        model: The unpruned model, in evaluation mode; its weights are never touched and get no gradients.
        batch: On the model's device.
        reward: kl, loss or squared.
        kept: [K], the context; None is the whole model. Arms that are not kept get zeros.
        original: What the unpruned model says on the batch; needed in a context for kl and squared.
        samples: Label draws for kl where there are more than 8 classes, or several positions.
        seed: Of the label draws.

    Returns:
        [K, B] float64 on the model's device, and the backward passes that were made.

    Raises:
        ValueError: For a reward that has no estimate.
    """
    if reward not in ESTIMATED:
        raise ValueError(f"reward '{reward}' has no gradient estimate; those that have: {', '.join(ESTIMATED)}")
    kept = np.ones(len(arms), dtype=bool) if kept is None else kept
    whole = bool(kept.all())
    gates = _gates(model, arms.kept_units(kept), len(batch["input_ids"]))
    with _frozen(model), torch.enable_grad(), masked(model, **gates):
        readout = task.readout(model, batch)
        derive = _Derivatives(arms, gates)
        if reward == "kl":
            found = -0.5 * _gauss_newton(readout, derive, samples, seed)
            if not whole:
                found += derive(_divergence(_needed(original, reward), readout))
        else:
            losses = readout.losses()
            found = derive(losses)
            if reward == "squared":
                moved = 0 if whole else (losses - _needed(original, reward).losses()).detach()
                found = 2 * moved * found - found.square()
    found[torch.as_tensor(~kept, device=found.device)] = 0
    return found, derive.backwards


class _Derivatives:
    """Derivatives of per-example values with respect to the gates of all arms."""

    def __init__(self, arms: ArmTable, gates: Gates) -> None:
        self.arms = arms
        self.sites = [("neuron", layer, gate) for layer, gate in gates["neuron_mask"].items()]
        self.sites += [("head", layer, gate) for layer, gate in gates["head_mask"].items()]
        self.backwards = 0

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """[B] -> [K, B] float64."""
        gradients = torch.autograd.grad(values.sum(), [gate for *_, gate in self.sites], retain_graph=True)
        self.backwards += 1
        found = torch.zeros(len(self.arms), len(values), dtype=torch.float64, device=values.device)
        for (kind, layer, _), gradient in zip(self.sites, gradients, strict=True):
            rows = np.flatnonzero((self.arms.kind == kind) & (self.arms.layer == layer))
            if len(rows):
                owner = torch.as_tensor(np.repeat(rows, self.arms.units[rows]), device=values.device)
                found.index_add_(0, owner, gradient.T.double())
        return found


def _gauss_newton(readout: Readout, derive: _Derivatives, samples: int, seed: int) -> torch.Tensor:
    """[K, B], J' (diag(q) - q q') J, mean over the positions that count."""
    wide = torch.float64 if readout.logits.shape[-1] <= FEW_CLASSES else torch.float32
    logs = readout.logits.to(wide).log_softmax(-1)
    counted = readout.targets != NO_TARGET
    classes, positions = logs.shape[-1], logs.shape[1]
    if positions == 1 and classes == 2:
        odds = logs[:, 0, 1] - logs[:, 0, 0]
        variance = (logs[:, 0, 0] + logs[:, 0, 1]).exp().detach()
        return variance * derive(odds).square()
    if positions == 1 and classes <= FEW_CLASSES:
        return sum(  # type: ignore[return-value]
            logs[:, 0, label].exp().detach() * derive(logs[:, 0, label]).square() for label in range(classes)
        )
    generator = torch.Generator(device=logs.device).manual_seed(seed)
    total = torch.zeros(())
    for _ in range(samples):
        drawn = torch.multinomial(logs.detach().exp().flatten(0, 1), 1, generator=generator).view_as(readout.targets)
        picked = logs.gather(-1, drawn.unsqueeze(-1)).squeeze(-1) * counted
        total = total + derive(picked.sum(1)).square()
    return total / samples / counted.sum(1).clamp(min=1)


def _divergence(original: Readout, readout: Readout) -> torch.Tensor:
    """[B], KL(p || q) of the unpruned model's outputs from the context's, mean over the positions that count."""
    p = probabilities_of(original.logits)
    before, now = (logits.to(p.dtype).log_softmax(-1) for logits in (original.logits, readout.logits))
    difference = (p * (before - now)).sum(-1)
    counted = readout.targets != NO_TARGET
    return (difference * counted).sum(1) / counted.sum(1).clamp(min=1)


def _needed(original: Readout | None, reward: str) -> Readout:
    if original is None:
        raise ValueError(f"in a context, the estimate of reward '{reward}' needs what the unpruned model says")
    return original


def _gates(model: PreTrainedModel, keep: KeepIndices, examples: int) -> Gates:
    """Masks of the context, one an example, [B, units] a site, that take gradients."""
    masks = keep_masks(model, keep)
    return {
        name: {layer: mask.repeat(examples, 1).requires_grad_() for layer, mask in layers.items()}
        for name, layers in masks.items()
    }


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter takes gradients while the context is open."""
    took = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in took:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in took:
            parameter.requires_grad_(True)
