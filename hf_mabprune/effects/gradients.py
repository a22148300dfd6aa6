"""Cheap estimates of every arm's reward at once, from gradients with respect to gates: a few backwards a batch.

A gate m_a multiplies the units of arm a; removing the arm moves it from 1 to 0. With g = dL/dm_a, J = dz/dm_a and q
the softmax of the logits z in the context S, all per example:

- loss, L(S) - L(S + a): g.
- squared, (L(S) - L0)^2 - (L(S + a) - L0)^2: 2 c g - g^2, with c = L(S) - L0.
- kl, KL(S) - KL(S + a): dKL/dm_a - 1/2 J' H J, H the Hessian of the KL divergence where it is zero: diag(q) - q q'
  for classes, the identity for numbers. At the unmasked model the first term is zero. The second is the sum of the
  squared derivatives of `Readout.coordinates`.

accuracy is a step function and has no estimate.

Arms do not add up: two that move an output the same way cost four times one of them, two that move it in opposite ways
nothing. `effects` keeps what the KL estimate squares away: the signed change of each coordinate with each arm, for the
KL of whole sets (`interactions.py`).
Symbols: K arms, B examples, D coordinates.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable, KeepIndices
from hf_mabprune.effects.masking import StandIn, keep_masks, masked
from hf_mabprune.tasks.base import Batch, Task, sequences_of
from hf_mabprune.tasks.readout import Readout

Bools = NDArray[np.bool_]
Gates = dict[str, Any]  # argument of `masked` -> layer -> [B, units]
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
        model: The dense model, in evaluation mode; its weights are never touched and get no gradients.
        batch: On the model's device.
        reward: kl, loss or squared.
        kept: [K], the context; None is the whole model. Arms that are not kept get zeros.
        original: What the dense model says on the batch; needed in a context for kl and squared.
        samples: Label draws for kl where there are more than 8 classes, or several positions with classes.
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
    with frozen(model), torch.enable_grad(), masked(model, **_repeated(gates, sequences_of(batch))):
        readout = task.readout(model, batch)
        derive = _Derivatives(arms, gates)
        if reward == "kl":
            coordinates = readout.coordinates(replace(readout, logits=readout.logits.detach()), samples, seed)
            found = sum((derive(moved).square() for moved in coordinates), torch.zeros(())) * -0.5
            if not whole:
                found += derive(readout.divergence(_needed(original, reward)))
        else:
            losses = readout.losses()
            found = derive(losses)
            if reward == "squared":
                moved = 0 if whole else (losses - _needed(original, reward).losses()).detach()
                found = 2 * moved * found - found.square()
    found[torch.as_tensor(~kept, device=found.device)] = 0
    return found, derive.backwards


def effects(
    model: PreTrainedModel,
    arms: ArmTable,
    task: Task,
    batch: Batch,
    kept: Bools,
    original: Readout,
    samples: int = 2,
    seed: int = 0,
    stand_ins: Mapping[str, StandIn] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What removing each arm does to each coordinate of the output, to first order, in a context.

    Args:
        model, arms, task, batch, samples, seed: As those of `estimate`.
        kept: [K], the context.
        original: What the dense model says on the batch.
        stand_ins: As those of `masked`.

    Returns:
        [K, D] float32, the change of every coordinate with the removal of every arm (for arms that are not kept: minus
        the change with their return), D a multiple of B; [K] float64, the derivative of the KL divergence with
        respect to the gate of every arm, summed over the examples (where coordinates are exact, of half their squares,
        which on MiniLM chose better sets than the divergence itself); and the passes that the first took, D / B.
    """
    gates = _gates(model, arms.kept_units(kept), len(batch["input_ids"]))
    repeated = _repeated(gates, sequences_of(batch))
    with frozen(model), torch.enable_grad(), masked(model, **repeated, stand_ins=stand_ins):
        derive = _Derivatives(arms, gates)
        readout = task.readout(model, batch)
        places = list(readout.coordinates(original, samples, seed))
        changes = [-derive(moved).float() for moved in places]
        slopes = torch.zeros(len(arms), dtype=torch.float64, device=changes[0].device)
        if not kept.all():  # at the dense model the divergence is least
            if readout.few_outputs():
                for change, moved in zip(changes, places, strict=True):
                    slopes -= change.double() @ moved.detach().double()
            else:
                slopes += derive(readout.divergence(original)).sum(1)
    return torch.cat(changes, 1), slopes, len(changes)


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


def _needed(original: Readout | None, reward: str) -> Readout:
    if original is None:
        raise ValueError(f"in a context, the estimate of reward '{reward}' needs what the dense model says")
    return original


def _gates(model: PreTrainedModel, keep: KeepIndices, examples: int) -> Gates:
    """Masks of the context, one an example, [B, units] a site, that take gradients."""
    masks = keep_masks(model, keep)
    return {
        name: {layer: mask.repeat(examples, 1).requires_grad_() for layer, mask in layers.items()}
        for name, layers in masks.items()
    }


def _repeated(gates: Gates, sequences: int) -> Gates:
    """The gates of each example once for each of its sequences, [B * sequences, units]."""
    return {
        name: {layer: gate.repeat_interleave(sequences, dim=0) for layer, gate in layers.items()}
        for name, layers in gates.items()
    }


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter takes gradients while the context is open."""
    took = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in took:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in took:
            parameter.requires_grad_(True)
