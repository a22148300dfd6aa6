"""What recovery minimises: how far the pruned model is from its labels and from the dense model.

Over the positions that count, with z the logits of the pruned model, z0 those of the dense one and y the labels, the
loss of a position is

    alpha * T^2 * KL(softmax(z0 / T) || softmax(z / T)) + (1 - alpha) * cross_entropy(z, y)

(Hinton et al., arXiv 1503.02531, section 2, where the dense model is called the teacher and the pruned one the
student). A higher temperature T flattens both distributions, so that the order of the unlikely classes is learnt too;
gradients of the KL term shrink as 1 / T^2, and the factor T^2 keeps both terms alike when T changes. A task whose
outputs are no classes brings its own loss and divergence (`Readout`).

The distance of hidden states may be added, `hidden_weight` times: pruning never changes the hidden size, so states
after each layer are compared as they are, without a projection between them (Sun et al., arXiv 1908.09355; they scale
both states to unit length, here the length of the dense model's state is the unit of both). Of an encoder-decoder both
stacks count alike.

Symbols: B examples in a batch; P positions whose logits may count; C classes or vocabulary; T tokens where it is a
dimension, else the temperature; D hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from hf_mabprune.tasks.head_readout import HeadReadout
from hf_mabprune.tasks.readout import Readout, some_targets

SMALLEST_SQUARE = 1e-12  # below it, a token's mean square in the dense model is no unit to divide by


def distillation_loss(student: Readout, dense: Readout | None, alpha: float, temperature: float) -> torch.Tensor:
    """Measures alpha * T^2 * divergence from the dense model, both at temperature T, + (1 - alpha) * task loss.

    Differentiable.

    Args:
        student: Readout of the pruned model.
        dense: Readout of the dense model on the same batch; may be None where alpha is 0.
        alpha: Weight of the divergence from the dense model, 0 to 1.
        temperature: T > 0.

    Returns:
        The mean over examples of the means over their positions that count, in nats for classes.
    """
    loss = torch.zeros(())
    if alpha < 1:
        loss = (1 - alpha) * student.losses().mean()
    if alpha > 0 and dense is not None:
        divergences = student.softened(temperature).divergence(dense.softened(temperature))
        loss = loss + alpha * temperature**2 * divergences.mean()
    return loss


def some_positions(readout: Readout, share: float) -> Readout:
    """Lets a random part of each example's positions count, at least one; drawn with torch's own generator.

    Args:
        readout: Readout of one forward pass.
        share: Part of the positions, 0 to 1.
    """
    if share == 1 or readout.targets.ndim < 2 or readout.targets.shape[1] == 1:
        return readout
    most = (share * readout.positions().unsqueeze(1)).ceil()
    return replace(readout, targets=some_targets(readout.targets, most))


def halved(readout: Readout) -> Readout:
    """Lets products with the head of a large vocabulary be in bfloat16, as those of the layers are in mixed precision.

    The change of logits is a product of the change of hidden states, so that it keeps its digits in the divergence.
    """
    return replace(readout, head=replace(readout.head, half=True)) if isinstance(readout, HeadReadout) else readout


def hidden_distance(
    student: Sequence[torch.Tensor], dense: Sequence[torch.Tensor], attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Measures the squared error between hidden states, in units of each token's mean square in the dense model.

    With h and h0 [D] the states of one token after one layer: |h - h0|^2 / |h0|^2, where both mean squares are over D.
    Without units, the few tokens and layers with huge states would be all that counts.

    Args:
        student: Hidden states of the pruned model, [B, T, D], one after each layer.
        dense: Hidden states of the dense model, likewise.
        attention_mask: [B, T], 1 for tokens; None where nothing is padded.

    Returns:
        The mean over layers and tokens, float32.
    """
    errors = [
        (h.float() - h0.float()).square().mean(-1) / h0.float().square().mean(-1).clamp(min=SMALLEST_SQUARE)
        for h, h0 in zip(student, dense, strict=True)
    ]
    layer_mean = torch.stack(errors).mean(0)
    weights = torch.ones_like(layer_mean) if attention_mask is None else attention_mask.reshape(layer_mean.shape)
    return (layer_mean * weights).sum() / weights.sum()
