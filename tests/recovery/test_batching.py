"""Order of the training examples."""

import numpy as np

from hf_mabprune.config import RecoveryConfig
from hf_mabprune.recovery.batching import batch_order
from tests.seeds import moved


def test_every_epoch_sees_every_example_once_in_batches_of_like_length() -> None:
    lengths = np.random.default_rng(moved(0)).integers(1, 40, 96)
    order = batch_order(lengths, RecoveryConfig(batch_size=8, epochs=2), seed=0)
    assert order.shape == (24, 8)
    assert np.array_equal(np.bincount(order.ravel()), np.full(96, 2))
    assert np.ptp(lengths[order], axis=1).mean() < 4, "padding is saved"
    assert (np.diff(lengths[order].mean(1)) < 0).any(), "but batches come in random order"
    assert np.array_equal(order, batch_order(lengths, RecoveryConfig(batch_size=8, epochs=2), seed=0))
    assert not np.array_equal(order, batch_order(lengths, RecoveryConfig(batch_size=8, epochs=2), seed=1))
    assert batch_order(lengths, RecoveryConfig(batch_size=8, epochs=0.5), seed=0).shape == (6, 8)
    assert batch_order(lengths, RecoveryConfig(batch_size=8, epochs=9, max_steps=2), seed=0).shape == (2, 8)
    assert batch_order(lengths[:5], RecoveryConfig(batch_size=8, epochs=1), seed=0).shape == (1, 8)
