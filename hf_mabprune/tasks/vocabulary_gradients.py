"""Losses and divergences of a language model with a large vocabulary, and their gradients, without all logits at once.

Autograd would keep the logits of every position. Here the sums over the vocabulary are kept, one number a position
(`vocabulary.py`), and logits are made again, block by block, when gradients are asked for (for a loss with its head,
Wijmans et al. 2024, arXiv 2411.09009). A divergence whose head is not trained gets its gradient on the way, from the
logits that are there, and only that is kept, as large as the hidden states (Hsu et al. 2024, arXiv 2410.10989).

Symbols: n positions; D hidden; V vocabulary, v of which make a block; z logits of the model at hand; q the softmax of
them, p that of the dense model's.
"""

from typing import Any

import torch

from hf_mabprune.tasks.vocabulary import ROWS, Block, Head, compared, said, sloped


def losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Measures the cross-entropy at each position, [n] float64. Differentiable by hidden states and head.

    Args:
        hidden: [n, D].
        targets: [n], the right tokens.
    """
    return _Losses.apply(hidden, head.weight, head.bias, targets)


def divergences(head: Head, hidden: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Measures KL(p || q) at each position, [n] float64. Differentiable by hidden states and head, not by `dense`."""
    return _Divergences.apply(hidden, head.weight, head.bias, dense, head.half)


class _Losses(torch.autograd.Function):
    """-log q_y, and its gradient by the logits, q - 1_y."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        head = Head(weight, bias)
        normaliser = said(head, hidden).normaliser
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        return normaliser - head.of(hidden.float(), targets).double()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors

        def gradient(block: Block, rows: slice) -> torch.Tensor:
            share = (block.logits(hidden[rows].float()) - normaliser[rows].float().unsqueeze(1)).exp_()
            place = targets[rows] - block.tokens.start
            inside = ((place >= 0) & (place < share.shape[1])).nonzero().squeeze(1)
            share[inside, place[inside]] -= 1
            return share

        return (*_pulled_back(ctx, Head(weight, bias), hidden, slopes[0], gradient), None)


class _Divergences(torch.autograd.Function):
    """KL(p || q), and its gradient by the logits z, q - p."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dense: torch.Tensor,
        half: bool,
    ) -> torch.Tensor:
        ctx.frozen = ctx.needs_input_grad[:3] == (True, False, False)
        if ctx.frozen:
            divergence, slope = sloped(Head(weight, bias, half), hidden, dense)
            ctx.save_for_backward(slope)
            ctx.dtype = hidden.dtype
            return divergence
        found = compared(Head(weight, bias), hidden, dense)
        ctx.save_for_backward(hidden, weight, bias, dense, found.normaliser, found.dense)
        return found.divergence

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        if ctx.frozen:
            (slope,) = ctx.saved_tensors
            return (slope * slopes[0].float().unsqueeze(1)).to(ctx.dtype), None, None, None, None
        hidden, weight, bias, dense, normaliser, of_dense = ctx.saved_tensors

        def gradient(block: Block, rows: slice) -> torch.Tensor:
            share = (block.logits(hidden[rows].float()) - normaliser[rows].float().unsqueeze(1)).exp_()
            return share.sub_((block.logits(dense[rows].float()) - of_dense[rows].float().unsqueeze(1)).exp_())

        return (*_pulled_back(ctx, Head(weight, bias), hidden, slopes[0], gradient), None, None)


def _pulled_back(ctx: Any, head: Head, hidden: torch.Tensor, slopes: torch.Tensor, gradient: Any) -> Any:
    """Takes gradients by logits, [n, v] a block, back to the hidden states and, where it is trained, to the head.

    Args:
        ctx: Of the function; hidden states, weight and bias are its first inputs.
        slopes: [n], of what the positions gave.
        gradient: From a block and a slice of positions to the gradient of those by their logits.
    """
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    size = ROWS.get(hidden.device.type, ROWS["cpu"])
    of_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    of_weight = torch.zeros_like(head.weight, dtype=torch.float32) if wants_weight else None
    of_bias = torch.zeros_like(head.weight[:, 0], dtype=torch.float32) if wants_bias else None
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        scale = slopes[rows].float().unsqueeze(1)
        for block in head.blocks():
            change = gradient(block, rows).mul_(scale)
            of_hidden[rows] += block.pulled_back(change)
            if of_weight is not None:
                of_weight[block.tokens].addmm_(change.T, hidden[rows].float())
            if of_bias is not None:
                of_bias[block.tokens] += change.sum(0)
    return (
        of_hidden.to(hidden.dtype) if wants_hidden else None,
        None if of_weight is None else of_weight.to(head.weight.dtype),
        None if of_bias is None or head.bias is None else of_bias.to(head.bias.dtype),
    )
