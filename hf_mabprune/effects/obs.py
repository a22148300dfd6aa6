"""Optimal brain surgeon on blocks of columns: which go first, when all that stays is refitted each time.

A projection W [D, C] on inputs h costs E|dW h|^2 + lambda |dW|^2 = tr(dW H dW') when it changes by dW, with
H = E[h h'] + lambda I. Removing the columns S means dW_S = -W_S; all others are free, so the Lagrangian gives

    dW = -W_S ([H^-1]_SS)^-1 [H^-1]_S,:      at the cost      tr(W_S ([H^-1]_SS)^-1 W_S').

After that, H without the rows and columns of S takes the place of H. Its inverse need not be computed again: it is the
Schur complement of [H^-1]_SS in H^-1, H^-1 - [H^-1]_:,S ([H^-1]_SS)^-1 [H^-1]_S,: (block elimination).

Pure: numbers in, numbers out; the work is done on the device of the moments.
Source: Kurtic et al. 2023 (ZipLM), arXiv 2302.04089, section 3; Hassibi & Stork 1992.
Symbols: D outputs and C inputs (columns) of a projection W [D, C]; A blocks of `size` columns; S those of one block.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hf_mabprune.effects.damping import damped

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PENDING = 128  # rows of updates that are gathered before the large matrix is touched, once for all of them
ROWS = 256  # of the large matrix that are copied at a time


def increases(
    weight: torch.Tensor | Floats, second: torch.Tensor | NDArray[Any], size: int, blocks: int, damping: float
) -> Floats:
    """Says what the removal of each block costs, in the order in which they go, each time the cheapest.

    The cost of a change dW is tr(dW H dW'), H = second + lambda I, with all columns that stay refitted. A block's
    score is the largest increase up to and including its own removal. Increases alone may fall along the order (of two
    blocks that only together do something, the second is free once the first is gone), and scores that fell would have
    the second go before the first, which the increases do not allow for. With the running maximum scores never fall,
    so that those of several layers can be merged by size: what goes is a beginning of every layer's own order.

    Args:
        weight: [D, C].
        second: [C, C], second moments of the inputs, float32 or float64, on the device that does the work.
        size: Columns of a block; the last one may have fewer.
        blocks: A.
        damping: lambda, relative to the mean of the diagonal of `second`; more where that is not positive definite.

    Returns:
        [A]. Takes O(C^3 + D C^2), and C^2 float64 beside the arguments.
    """
    second = torch.as_tensor(second)
    if not second.diagonal().any():
        return np.zeros(blocks)  # nothing ever flows in: an expert that no position goes to
    spare = blocks * size - len(second)  # a smaller last block is filled up with columns of nothing
    padded = nn.functional.pad(torch.as_tensor(weight, dtype=torch.float64, device=second.device), (0, spare))

    def remove(strength: float) -> tuple[Ints, Floats] | None:
        hessian = torch.zeros(blocks * size, blocks * size, dtype=torch.float64, device=second.device)
        hessian[: len(second), : len(second)] = second
        hessian.diagonal()[: len(second)] += strength
        hessian.diagonal()[len(second) :] += 1.0
        inverse = inverted(hessian)
        if inverse is None:
            return None
        order, added = _remove_blocks(padded, inverse, size)
        return (order, added) if np.isfinite(added).all() else None

    mean = second.diagonal().double().mean().clamp(min=torch.finfo(torch.float64).tiny)
    order, added = damped(remove, damping * float(mean), float(second.abs().max()))
    scores = np.empty(blocks)
    scores[order] = np.maximum.accumulate(added) * (1 + 1e-9 * np.arange(blocks))  # equal increases keep their order
    return scores


def inverted(matrix: torch.Tensor) -> torch.Tensor | None:
    """Inverts a symmetric float64 matrix in its own memory; None where it is not positive definite."""
    columns = matrix.mT  # as LAPACK wants them, so that nothing is copied
    info = torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(columns, out=(columns, info))
    return None if info else torch.cholesky_inverse(columns, out=columns).mT


def remove_blocks(weight: Floats, hessian: Floats, size: int) -> tuple[Ints, Floats]:
    """Removes all blocks of neighbouring columns, each time the one that adds the least error.

    Args:
        weight: [D, A * size], of A blocks.
        hessian: [A * size, A * size], H, positive definite.
        size: Columns of a block.

    Returns:
        The blocks in their order, [A], and what each adds to the error, [A].
    """
    return _remove_blocks(torch.as_tensor(weight).double(), torch.as_tensor(hessian).double().inverse(), size)


def _remove_blocks(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> tuple[Ints, Floats]:
    """Removes all blocks, as `remove_blocks` does; H^-1 is used up."""
    blocks = len(inverse) // size
    state = _Elimination(weight, inverse.contiguous(), size)
    order = torch.empty(blocks, dtype=torch.int64, device=inverse.device)
    added = inverse.new_empty(blocks)
    for step in range(blocks):  # nothing here waits for the device, but for the few times that arrays shrink
        block = state.errors().masked_fill_(state.gone, torch.inf).argmin(keepdim=True)
        order[step], added[step] = state.names.index_select(0, block)[0], state.remove(block)
        if len(state.pending) >= PENDING:
            state.settle()
    return order.cpu().numpy(), added.cpu().numpy()


class _Elimination:
    """H^-1 and the refitted weights of the blocks that stay, while one block after the other goes.

    The large matrix is touched once for many removals: `inverse` is H^-1 as it last was, and the removals since then
    are the rows of `pending`, with H^-1 = inverse - pending' pending. What every step reads is kept up to date apart.

    Attributes:
        names: [A], the numbers of the blocks that the tensors still hold.
        gone: [A], those that were removed since the tensors last shrank.
        inverse: [C, C], see above.
        pending: [rows, C], see above.
        own: [A, size, size], [H^-1]_SS of every block S; the identity for those that are gone.
        columns: [A, size, D], W_S' of every block, refitted.
    """

    def __init__(self, weight: torch.Tensor, inverse: torch.Tensor, size: int) -> None:
        blocks = len(inverse) // size
        self.size = size
        self.names = torch.arange(blocks, device=inverse.device)
        self.gone = torch.zeros(blocks, dtype=torch.bool, device=inverse.device)
        self.inverse = inverse
        self.pending = inverse.new_empty(0, len(inverse))
        self.own = torch.einsum("aiaj->aij", inverse.reshape(blocks, size, blocks, size)).clone()
        self.columns = weight.T.clone(memory_format=torch.contiguous_format).view(blocks, size, -1)
        self._one = torch.eye(size, dtype=inverse.dtype, device=inverse.device)
        self._places = torch.arange(size, device=inverse.device)

    def errors(self) -> torch.Tensor:
        """[A], tr(W_S ([H^-1]_SS)^-1 W_S') = tr(([H^-1]_SS)^-1 W_S' W_S) of every block."""
        if self.size == 1:
            return torch.linalg.vecdot(self.columns, self.columns)[:, 0] / self.own[:, 0, 0]
        solved = torch.linalg.solve_ex(self.own, self.columns @ self.columns.mT)[0]
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, block: torch.Tensor) -> torch.Tensor:
        """Removes a block and refits the others.

        With the Cholesky factor L of [H^-1]_SS, U = L^-1 [H^-1]_S,: and Y = L^-1 W_S' turn both updates into outer
        products: H^-1 loses U'U, W' loses U'Y, and the error grows by |Y|^2.

        Args:
            block: [1], its place.

        Returns:
            What that adds to the error, a scalar; not finite where [H^-1]_SS has no such factor any more.
        """
        here = block * self.size + self._places
        root, failed = torch.linalg.cholesky_ex(self.own.index_select(0, block)[0])
        rows = self.inverse.index_select(0, here)  # [H^-1]_S,: [size, C]
        rows = rows - self.pending.index_select(1, here).T @ self.pending
        update = torch.linalg.solve_triangular(root, rows, upper=False)  # U [size, C]
        lead = torch.linalg.solve_triangular(root, self.columns.index_select(0, block)[0], upper=False)  # Y [size, D]
        self.columns.view(rows.shape[1], -1).addmm_(update.T, lead, alpha=-1)
        parts = update.reshape(self.size, -1, self.size)
        self.own -= torch.einsum("rai,raj->aij", parts, parts)  # the diagonal blocks of U'U
        self.gone.index_fill_(0, block, True)
        self.own = torch.where(self.gone[:, None, None], self._one, self.own)  # so that `errors` can solve
        self.pending = torch.cat([self.pending, update])
        return lead.square().sum().masked_fill(failed > 0, torch.nan)

    def settle(self) -> None:
        """Takes the pending updates off the large matrix, and drops what has gone from all tensors.

        What stays of the matrix moves up in its own memory, a few rows at a time: none moves beyond where it was.
        """
        stay = ~self.gone
        left = stay.repeat_interleave(self.size).nonzero()[:, 0]
        pending = self.pending[:, left]
        smaller = self.inverse.view(-1)[: len(left) ** 2].view(len(left), len(left))
        for start in range(0, len(left), ROWS):
            rows = slice(start, start + ROWS)
            smaller[rows] = self.inverse[left[rows]][:, left] - pending[:, rows].T @ pending
        self.inverse, self.pending = smaller, pending[:0]
        self.own, self.columns = self.own[stay], self.columns[stay]
        self.names, self.gone = self.names[stay], self.gone[stay]
