"""Optimal brain surgeon on blocks of columns: which go first, when all that stays is refitted each time.

A projection W [D, C] on inputs h costs E|dW h|^2 + lambda |dW|^2 = tr(dW H dW') when it changes by dW, with
H = E[h h'] + lambda I. Removing the columns S means dW_S = -W_S; all others are free, so the Lagrangian gives

    dW = -W_S ([H^-1]_SS)^-1 [H^-1]_S,:      at the cost      tr(W_S ([H^-1]_SS)^-1 W_S').

After that, H without the rows and columns of S takes the place of H. Its inverse need not be computed again: it is the
Schur complement of [H^-1]_SS in H^-1, H^-1 - [H^-1]_:,S ([H^-1]_SS)^-1 [H^-1]_S,: (block elimination).

Pure: arrays in, arrays out. Source: Kurtic et al. 2023 (ZipLM), arXiv 2302.04089, section 3; Hassibi & Stork 1992.
Symbols: D outputs and C inputs (columns) of a projection W [D, C]; A blocks of `size` columns; S those of one block.
"""

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.effects.damping import damped

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PENDING = 128  # rows of updates that are gathered before the large matrix is touched, once for all of them


def increases(weight: Floats, second: Floats, size: int, blocks: int, damping: float) -> Floats:
    """Says what the removal of each block costs, in the order in which they go, each time the cheapest.

    The cost of a change dW is tr(dW H dW'), H = second + lambda I, with all columns that stay refitted. A block's
    score is the largest increase up to and including its own removal. Increases alone may fall along the order (of two
    blocks that only together do something, the second is free once the first is gone), and scores that fell would have
    the second go before the first, which the increases do not allow for. With the running maximum scores never fall,
    so that those of several layers can be merged by size: what goes is a beginning of every layer's own order.

    Args:
        weight: [D, C].
        second: [C, C], second moments of the inputs.
        size: Columns of a block; the last one may have fewer.
        blocks: A.
        damping: lambda, relative to the mean of the diagonal of `second`; more where that is not positive definite.

    Returns:
        [A]. Takes O(C^3 + D C^2), and C^2 float64.
    """
    if not second.diagonal().any():
        return np.zeros(blocks)  # nothing ever flows in: an expert that no position goes to
    spare = blocks * size - len(second)  # a smaller last block is filled up with columns of nothing
    padded = np.pad(weight, ((0, 0), (0, spare)))

    def remove(strength: float) -> tuple[Ints, Floats] | None:
        hessian = np.eye(len(second) + spare)
        hessian[: len(second), : len(second)] = second
        hessian[np.diag_indices(len(second))] += strength
        np.linalg.cholesky(hessian)  # an error, where an inverse might be found that means nothing
        order, added = remove_blocks(padded, hessian, size)
        return (order, added) if np.isfinite(added).all() else None

    first = damping * max(second.diagonal().mean(), np.finfo(float).tiny)
    order, added = damped(remove, float(first), float(np.abs(second).max()))
    scores = np.empty(blocks)
    scores[order] = np.maximum.accumulate(added) * (1 + 1e-9 * np.arange(blocks))  # equal increases keep their order
    return scores


def remove_blocks(weight: Floats, hessian: Floats, size: int) -> tuple[Ints, Floats]:
    """Removes all blocks of neighbouring columns, each time the one that adds the least error.

    Args:
        weight: [D, A * size], of A blocks.
        hessian: [A * size, A * size], H, positive definite.
        size: Columns of a block.

    Returns:
        The blocks in their order, [A], and what each adds to the error, [A].
    """
    blocks = hessian.shape[0] // size
    state = _Elimination(weight, hessian, size)
    order, increases = np.empty(blocks, dtype=np.int64), np.empty(blocks)
    for step in range(blocks):
        errors = state.errors()
        errors[state.gone] = np.inf
        block = int(np.argmin(errors))
        order[step], increases[step] = state.names[block], state.remove(block)
        if len(state.pending) >= PENDING:
            state.settle()
    return order, increases


class _Elimination:
    """H^-1 and the refitted weights of the blocks that stay, while one block after the other goes.

    The large matrix is touched once for many removals: `inverse` is H^-1 as it last was, and the removals since then
    are the rows of `pending`, with H^-1 = inverse - pending' pending. What every step reads is kept up to date apart.

    Attributes:
        names: [A], the numbers of the blocks that the arrays still hold.
        gone: [A], those that were removed since the arrays last shrank.
        inverse: [C, C], see above.
        pending: [rows, C], see above.
        own: [A, size, size], [H^-1]_SS of every block S; the identity for those that are gone.
        columns: [A, size, D], W_S' of every block, refitted.
    """

    def __init__(self, weight: Floats, hessian: Floats, size: int) -> None:
        blocks = hessian.shape[0] // size
        self.size = size
        self.names = np.arange(blocks)
        self.gone = np.zeros(blocks, dtype=bool)
        self.inverse = np.linalg.inv(hessian)
        self.pending = np.empty((0, len(self.inverse)))
        self.own = np.einsum("aiaj->aij", self.inverse.reshape(blocks, size, blocks, size)).copy()
        self.columns = np.ascontiguousarray(weight.T).reshape(blocks, size, -1)

    def errors(self) -> Floats:
        """[A], tr(W_S ([H^-1]_SS)^-1 W_S') = tr(([H^-1]_SS)^-1 W_S' W_S) of every block."""
        grams = self.columns @ self.columns.transpose(0, 2, 1)
        return np.trace(np.linalg.solve(self.own, grams), axis1=1, axis2=2)

    def remove(self, block: int) -> float:
        """Removes a block and refits the others; gives what that adds to the error.

        With the Cholesky factor L of [H^-1]_SS, U = L^-1 [H^-1]_S,: and Y = L^-1 W_S' turn both updates into outer
        products: H^-1 loses U'U, W' loses U'Y, and the error grows by |Y|^2.
        """
        here = slice(block * self.size, (block + 1) * self.size)
        root = np.linalg.cholesky(self.own[block])
        rows = self.inverse[here] - self.pending[:, here].T @ self.pending  # [H^-1]_S,: [size, C]
        update = np.linalg.solve(root, rows).astype(float, copy=False)  # U [size, C]
        lead = np.linalg.solve(root, self.columns[block])  # Y [size, D]
        self.columns -= (update.T @ lead).reshape(self.columns.shape)
        parts = update.reshape(self.size, -1, self.size)
        self.own -= np.einsum("rai,raj->aij", parts, parts)  # the diagonal blocks of U'U
        self.gone[block] = True
        self.own[self.gone] = np.eye(self.size)  # of no use any more, but `errors` must be able to solve with it
        self.pending = np.concatenate([self.pending, update])
        return float(np.square(lead).sum())

    def settle(self) -> None:
        """Takes the pending updates off the large matrix, and drops what has gone from all arrays."""
        stay = ~self.gone
        left = np.repeat(stay, self.size)
        pending = self.pending[:, left]
        self.inverse = self.inverse[np.ix_(left, left)] - pending.T @ pending
        self.pending = pending[:0]
        self.own, self.columns, self.names, self.gone = (
            array[stay] for array in (self.own, self.columns, self.names, self.gone)
        )
