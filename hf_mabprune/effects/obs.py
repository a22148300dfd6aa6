"""Optimal brain refit_costs on blocks of columns: which go first, when all that stays is refitted each time.

Pure: arrays in, arrays out. Source: Kurtic et al. 2023 (ZipLM), arXiv 2302.04089, section 3; Hassibi & Stork 1992.
Symbols: D outputs and C inputs (columns) of a projection W [D, C]; A blocks.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PENDING = 128  # rows of updates that are gathered before the large matrix is touched


def increases(weight: Floats, second: Floats, size: int, blocks: int, damping: float) -> Floats:
    """What the removal of each block costs, in the order in which they go, each time the cheapest.

    The cost of a change dW is tr(dW H dW'), H = second + lambda I, with all columns that stay refitted. A block's
    score is the largest increase up to and including its own removal: never falling along the order, and comparable
    between layers, since taking the smallest increases first makes the sum of all layers' costs small.

    Args:
        weight: [D, C].
        second: [C, C], second moments of the inputs.
        size: Columns of a block; the last one may have fewer.
        blocks: A.
        damping: lambda, relative to the mean of the diagonal of `second`.

    Returns:
        [A]. Takes O(C^3 + D C^2), and C^2 float64.
    """
    spare = blocks * size - len(second)  # a smaller last block is filled up with columns of nothing
    hessian = np.eye(len(second) + spare)
    hessian[: len(second), : len(second)] = second
    hessian[np.diag_indices(len(second))] += damping * max(second.diagonal().mean(), np.finfo(float).tiny)
    order, added = remove_blocks(np.pad(weight, ((0, 0), (0, spare))), hessian, size)
    found = np.empty(blocks)
    found[order] = np.maximum.accumulate(added) * (1 + 1e-9 * np.arange(blocks))  # equal increases keep their order
    return found


def remove_blocks(weight: Floats, hessian: Floats, size: int) -> tuple[Ints, Floats]:
    """Removes all blocks of neighbouring columns, each time the one that adds the least error.

    Args:
        weight: [D, A * size], of A blocks.
        hessian: [A * size, A * size], positive definite.

    Returns:
        The blocks in their order, [A], and what each adds to the error, [A].
    """
    blocks = hessian.shape[0] // size
    names = np.arange(blocks)  # of the blocks that the arrays below still hold
    gone = np.zeros(blocks, dtype=bool)
    inverse = np.linalg.inv(hessian)  # [C, C], less pending' pending
    pending = np.empty((0, len(inverse)))
    own = np.einsum("aiaj->aij", inverse.reshape(blocks, size, blocks, size)).copy()  # [A, size, size], up to date
    columns = np.ascontiguousarray(weight.T).reshape(blocks, size, -1)  # [A, size, D], up to date
    order, increases = np.empty(blocks, dtype=np.int64), np.empty(blocks)
    for step in range(blocks):
        grams = columns @ columns.transpose(0, 2, 1)
        errors = np.trace(np.linalg.solve(own, grams), axis1=1, axis2=2)
        errors[gone] = np.inf
        block = int(np.argmin(errors))
        mine = slice(block * size, (block + 1) * size)
        root = np.linalg.cholesky(own[block])
        update = np.linalg.solve(root, inverse[mine] - pending[:, mine].T @ pending).astype(float, copy=False)
        lead = np.linalg.solve(root, columns[block])
        columns -= (update.T @ lead).reshape(columns.shape)
        parts = update.reshape(size, -1, size)
        own -= np.einsum("rai,raj->aij", parts, parts)
        gone[block] = True
        own[gone] = np.eye(size)
        order[step], increases[step] = names[block], np.square(lead).sum()
        pending = np.concatenate([pending, update])
        if len(pending) >= PENDING:
            left = np.repeat(~gone, size)
            pending = pending[:, left]
            inverse = inverse[np.ix_(left, left)] - pending.T @ pending
            pending = pending[:0]
            own, columns, names, gone = own[~gone], columns[~gone], names[~gone], gone[~gone]
    return order, increases
