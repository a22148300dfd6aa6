"""Refits that were made before are kept, within a limit."""

import torch

from hf_mabprune.compensation import RefitCache
from hf_mabprune.effects.reserve import Reserve


def refit() -> tuple[torch.Tensor, torch.Tensor]:
    """288 bytes."""
    return torch.zeros(4, 8, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)


def test_known_refits_keep_to_their_limit_and_the_last_asked_for_stay() -> None:
    cache = RefitCache(Reserve(limit=4 * 288))  # half of it is for what is kept
    known = refit()
    cache.put(("a", b""), known)
    cache.put(("b", b""), refit())
    assert cache.get(("a", b"")) is known
    cache.put(("c", b""), refit())
    assert [path for path, _ in cache.refits] == ["a", "c"] and cache.reserve.taken == 2 * 288


def test_refits_give_way_to_what_else_is_kept() -> None:
    reserve = Reserve(limit=4 * 288)
    cache = RefitCache(reserve)
    cache.put(("a", b""), refit())
    assert reserve.take(288) and not reserve.take(288)
    cache.put(("b", b""), refit())
    assert [path for path, _ in cache.refits] == ["b"]
    assert reserve.take(0) and reserve.taken == 2 * 288
