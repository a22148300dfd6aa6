"""Which calibration examples go into which optimizer step of recovery: known before training, and the same everywhere.

Symbols: N examples; n examples in an optimizer step, over all processes.
"""

import math

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.config import RecoveryConfig

BATCHES_IN_A_RUN = 50  # whose examples are sorted by length together


def batch_order(lengths: NDArray[np.int64], settings: RecoveryConfig, seed: int) -> NDArray[np.int64]:
    """Deals the examples out over the optimizer steps; each epoch is a permutation of its own.

    Batches are cut from runs of 50 batches that are sorted by length, which saves most of the padding, and come in
    random order. The order depends on the seed alone, so any number of processes takes the same steps.

    Args:
        lengths: Length of each example, [N], from `Task.lengths`.
        settings: Recovery settings: how many epochs or steps, and n, `batch_size`.
        seed: Seed of the order.

    Returns:
        Numbers of the examples of each step, [steps, n].
    """
    rng, size = np.random.default_rng(seed), settings.batch_size
    steps = max(1, round(settings.epochs * len(lengths) / size))
    steps = min(steps, settings.max_steps or steps)
    epochs = math.ceil(steps * size / len(lengths))
    stream = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])[: steps * size]
    for start in range(0, len(stream), BATCHES_IN_A_RUN * size):
        run = stream[start : start + BATCHES_IN_A_RUN * size]  # a view: sorting it sorts the stream
        run[:] = run[np.argsort(lengths[run], kind="stable")]
    batches: NDArray[np.int64] = rng.permutation(stream.reshape(steps, size))
    return batches
