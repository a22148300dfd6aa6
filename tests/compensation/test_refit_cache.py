"""Refits that were made before are kept, within a limit."""

import torch

from hf_mabprune.compensation import RefitCache


def test_known_refits_keep_to_their_limit_and_the_last_asked_for_stay() -> None:
    values = torch.zeros(4, 8, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)  # 288 bytes
    cache = RefitCache(limit=2 * 288)
    for path in ("a", "b"):
        cache.put((path, b""), values)
    cache.put(("a", b""), values)
    assert cache.get(("a", b"")) is values
    cache.put(("c", b""), values)
    assert [path for path, _ in cache.refits] == ["a", "c"] and cache.size == 2 * 288
    cache.limit = 100
    cache.put(("d", b""), values)
    assert not cache.refits and cache.size == 0
