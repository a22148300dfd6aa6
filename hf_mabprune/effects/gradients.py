"""Cheap estimates of every arm's reward at once, from gradients with respect to gates: a few backwards a batch.

A gate m_a multiplies the units of arm a; removing the arm moves it from 1 to 0, so a Taylor expansion of a quantity f
around m_a = 1 gives f(S + a) - f(S) ~ -df/dm_a + 1/2 d2f/dm_a^2. With g = dL/dm_a, J = dz/dm_a and q the softmax of
the logits z in the context S, L0 the loss of the dense model, all per example:

- loss, L(S) - L(S + a): g.
- squared, (L(S) - L0)^2 - (L(S + a) - L0)^2: 2 c g - g^2, with c = L(S) - L0 and L linear in the gate.
- kl, KL(S) - KL(S + a): dKL/dm_a - 1/2 J' H J, H the Hessian of the KL divergence where it is zero: diag(q) - q q'
  for classes, the identity for numbers (Gauss-Newton: second derivatives of z are left out). At the dense model the
  first term is zero. J' H J is the sum of the squared derivatives of `Readout.coordinates`.

accuracy is a step function and has no estimate.

An estimate W_ab of arm a on batch b is a control variate of the pull X_ab on the same batch: its mean omega_a over all
batches is known after one sweep, and mean(X - W) + omega has the mean of X and the variance of X - W alone (Verma &
Hanawal 2021; measured, about 0.002 of that of X at the dense model).

Arms do not add up: two that move an output the same way cost four times one of them, two that move it in opposite ways
nothing. `effects` keeps what the KL estimate squares away: the signed change of each coordinate with each arm, for the
KL of sets (`interactions.py`).
Symbols: K arms, B examples, D coordinates; S the context (arms already removed).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable, KeepIndices
from hf_mabprune.checkpoints.offload import offload_of
from hf_mabprune.effects.activations import in_statistics
from hf_mabprune.effects.masking import StandIn, keep_masks, masked
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout

Bools = NDArray[np.bool_]
Gates = dict[str, torch.Tensor]  # name of a site -> [B, units]
ESTIMATED = ("kl", "loss", "squared")
SCALE = 2**10  # of derivatives in float16
HIDDEN_STATES = 16  # of a layer that a pass with gradients keeps, roughly


def estimate(
    model: PreTrainedModel,
    arms: ArmTable,
    task: Task,
    batch: Batch,
    reward: str,
    kept: Bools | None = None,
    dense: Readout | None = None,
    samples: int = 2,
    seed: int = 0,
) -> tuple[torch.Tensor, int]:
    """Estimates the reward of every arm on every example of a batch.

    Args:
        model: Dense model, in evaluation mode; its weights are never touched and get no gradients.
        arms: All arms.
        task: Gives the logits that count and their targets.
        batch: Mini-batch, on the model's device.
        reward: kl, loss or squared.
        kept: Arms that are still there, [K], the context; None is the dense model. The others get zeros.
        dense: What the dense model says on the batch; needed in a context for kl and squared.
        samples: Label draws for kl where there are more than 8 classes, or several positions with classes.
        seed: Seed of the label draws.

    Returns:
        [K, B] float64 on the model's device, and the backward passes that were made.

    Raises:
        ValueError: For a reward that has no estimate.
    """
    if reward not in ESTIMATED:
        raise ValueError(f"reward '{reward}' has no gradient estimate; those that have: {', '.join(ESTIMATED)}")
    kept = np.ones(len(arms), dtype=bool) if kept is None else kept
    in_context = not kept.all()
    gates = _gates(model, arms.kept_units(kept), batch.examples)
    with frozen(model), torch.enable_grad(), masked(model, masks=_repeated(gates, batch.sequences)):
        readout = task.readout(model, batch)
        derive = _Derivatives(arms, gates)
        if reward == "kl":
            coordinates = readout.coordinates(replace(readout, outputs=readout.outputs.detach()), samples, seed)
            rewards = sum((derive(coordinate).square() for coordinate in coordinates), torch.zeros(())) * -0.5
            if in_context:
                rewards += derive(readout.divergence(_needed(dense, reward)))
        else:
            losses = readout.losses()
            rewards = derive(losses)
            if reward == "squared":
                moved = (losses - _needed(dense, reward).losses()).detach() if in_context else 0
                rewards = 2 * moved * rewards - rewards.square()
    rewards[torch.as_tensor(~kept, device=rewards.device)] = 0
    return rewards, derive.backwards


def effects(
    model: PreTrainedModel,
    arms: ArmTable,
    task: Task,
    batch: Batch,
    kept: Bools,
    dense: Readout,
    samples: int = 2,
    seed: int = 0,
    stand_ins: Mapping[str, StandIn] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Derives what removing each arm does to each coordinate of the output, to first order, in a context.

    Args:
        model, arms, task, batch, samples, seed: As those of `estimate`.
        kept: Arms that are still there, [K], the context.
        dense: What the dense model says on the batch.
        stand_ins: As those of `masked`.

    Returns:
        E [K, D] float32, the change of every coordinate with the removal of every arm (for arms that are not kept:
        minus the change with their return), D a multiple of B; dKL/dm_a, [K] float64, the derivative of the KL
        divergence with respect to the gate of every arm, summed over the examples (where coordinates are exact, of
        half their squares, which on MiniLM chose better sets than the divergence itself); and the passes that the
        first took, D / B.
    """
    gates = _gates(model, arms.kept_units(kept), batch.examples)
    repeated = _repeated(gates, batch.sequences)
    with frozen(model), torch.enable_grad(), masked(model, masks=repeated, stand_ins=stand_ins):
        derive = _Derivatives(arms, gates)
        readout = task.readout(model, batch)
        coordinates = list(readout.coordinates(dense, samples, seed))
        changes = [-derive(coordinate).float() for coordinate in coordinates]  # E = -du/dm, [K, B] each
        slopes = torch.zeros(len(arms), dtype=torch.float64, device=changes[0].device)
        if not kept.all():  # at the dense model the divergence is least
            if readout.few_outputs():
                for change, coordinate in zip(changes, coordinates, strict=True):  # d(1/2 u^2)/dm = u du/dm = -E u
                    slopes -= change.double() @ coordinate.detach().double()
            else:
                slopes += derive(readout.divergence(dense)).sum(1)
    return torch.cat(changes, 1), slopes, len(changes)


class _Derivatives:
    """Derives per-example values with respect to the gates of all arms.

    Every example has gates of its own, so that one backward of the sum over examples gives all derivatives apart.

    Attributes:
        gates: [B, units] of each site, by name.
        backwards: Backward passes that were made.
    """

    def __init__(self, arms: ArmTable, gates: Gates) -> None:
        self.arms, self.gates = arms, gates
        self.rows = dict(arms.groups())
        self.backwards = 0

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Derives values, [B], by the gate of every arm: [K, B] float64, the sum over the gates of the arm's units."""
        gradients = slopes_of(values, list(self.gates.values()))
        self.backwards += 1
        derivatives = torch.zeros(len(self.arms), len(values), dtype=torch.float64, device=values.device)
        for name, gradient in zip(self.gates, gradients, strict=True):
            rows = self.rows[name]
            owner = torch.as_tensor(np.repeat(rows, self.arms.units[rows]), device=values.device)
            derivatives.index_add_(0, owner, gradient.T.double())
        return derivatives


def slopes_of(values: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Derives the sum of values by each of some tensors, in float32 where these are in half precision.

    Float16 ends at 6e-8, which derivatives are often below: on their way through the model they are scaled.
    """
    scale = SCALE if inputs[0].dtype == torch.float16 else 1
    found = torch.autograd.grad(scale * values.sum(), inputs, retain_graph=True, materialize_grads=True)
    return [in_statistics(gradient) / scale if scale > 1 else in_statistics(gradient) for gradient in found]


def _needed(dense: Readout | None, reward: str) -> Readout:
    if dense is None:
        raise ValueError(f"in a context, the estimate of reward '{reward}' needs what the dense model says")
    return dense


def _gates(model: PreTrainedModel, keep: KeepIndices, examples: int) -> Gates:
    """Makes masks of the context, one an example, [B, units] a site, that take gradients."""
    return {name: mask.repeat(examples, 1).requires_grad_() for name, mask in keep_masks(model, keep).items()}


def _repeated(gates: Gates, sequences: int) -> Gates:
    """Repeats the gates of each example for each of its sequences, [B * sequences, units]."""
    return {name: gate.repeat_interleave(sequences, dim=0) for name, gate in gates.items()}


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Lets no parameter take gradients while the context is open, nor a backward pass hold on to layers that were
    brought in."""
    took, offload = [parameter for parameter in model.parameters() if parameter.requires_grad], offload_of(model)
    for parameter in took:
        parameter.requires_grad_(False)
    try:
        with offload.backward() if offload else nullcontext():
            yield
    finally:
        for parameter in took:
            parameter.requires_grad_(True)


def memory(sizes: Sizes) -> int:
    """Estimates the bytes that a pass keeps for its gradients, beside weights and outputs."""
    return sizes.item * sizes.batch_tokens * sizes.layers * (HIDDEN_STATES * sizes.hidden + 3 * max(sizes.columns))
