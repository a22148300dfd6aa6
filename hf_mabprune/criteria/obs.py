"""Optimal brain surgeon on whole arms: what is kept is refitted after every removal."""

from dataclasses import dataclass

import numpy as np

from hf_mabprune.architectures import Site
from hf_mabprune.criteria.base import CRITERIA, Criterion, Evidence, Floats, Ints
from hf_mabprune.registry import option

PENDING = 128  # rows of updates that are gathered before the large matrix is touched


@CRITERIA.register("obs")
@dataclass(kw_only=True)
class OBS(Criterion):
    """The error of a layer that an arm's removal adds, in the order in which its arms go, each time the safest.

    Removing the columns S of W adds tr(W_S ([H^-1]_SS)^-1 W_S') to E norm((W - W') h)^2 + lambda norm(W - W')^2, when
    all other columns are refitted: W <- W - W_S ([H^-1]_SS)^-1 [H^-1]_S,:, and H^-1 loses S by block elimination.
    H = E[h h'] + lambda I, lambda = damping * mean of the diagonal of E[h h']; the factor 2 of the original is left
    out, so that errors are mean squared ones. An arm's score is the largest increase of its layer's error up to and
    including its own removal: never falling along the order, and comparable between layers, since taking the smallest
    increases first makes the sum of all layers' errors small. The weights are refitted for the scores alone.

    Cost: O(C^3 + D C^2) a site, and C^2 float64.

    Source: Kurtic et al. 2023 (ZipLM), arXiv 2302.04089, section 3; Hassibi & Stork 1992. ZipLM chooses sizes by a
    search over measured latencies, with errors relative to the layer's output as its prior (`relative`).

    Raises:
        ValueError: If damping is not above 0.
    """

    damping: float = option(0.01, "lambda, relative to the mean of the diagonal of the second moments; above 0")
    relative: bool = option(False, "errors as fractions of the mean squared output of the layer's projection")

    def __post_init__(self) -> None:
        if not 0.0 < self.damping < np.inf:
            raise ValueError(f"damping must be finite and above 0, got {self.damping}")

    def scores(self, evidence: Evidence) -> Floats:
        found = np.empty(len(evidence.arms))
        for site, rows in evidence.sites:
            order, increases = self._remove(evidence, site, rows)
            ramp = 1 + 1e-9 * np.arange(len(rows))  # equal increases keep their order
            found[rows[order]] = np.maximum.accumulate(increases) * ramp
        return found

    def _remove(self, evidence: Evidence, site: Site, rows: Ints) -> tuple[Ints, Floats]:
        """Every arm of a site in turn: numbers into `rows`, and the increases."""
        weight = evidence.weight(site.output)
        second = evidence.moments[site.output].second.cpu().numpy()
        scale = float((weight @ second * weight).sum()) if self.relative else 1.0
        size = int(evidence.arms.units[rows].max()) * site.unit_size
        spare = len(rows) * size - len(second)  # a smaller last block is filled up with columns of nothing
        hessian = np.eye(len(second) + spare)
        hessian[: len(second), : len(second)] = second
        hessian[np.diag_indices(len(second))] += self.damping * max(second.diagonal().mean(), np.finfo(float).tiny)
        order, increases = remove_blocks(np.pad(weight, ((0, 0), (0, spare))), hessian, size)
        return order, increases / max(scale, np.finfo(float).tiny)


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
