"""What is freed between blocks that stay goes back to the system."""

import threading
import time

import psutil
import pytest
import torch

from hf_mabprune.runtime import heap

MIB = 2**20
BLOCKS = 256

pytestmark = pytest.mark.skipif(not heap.can_trim(), reason="this C library keeps what is freed")


def held() -> int:
    """Bytes of this process that are in memory."""
    return psutil.Process().memory_info().rss


@pytest.fixture
def kept() -> list[torch.Tensor]:
    """Every other one of many blocks of half a mebibyte; what lay between them is free, and still held."""
    torch.ones(16 * MIB, dtype=torch.uint8)  # freed at once: from now on smaller blocks come from the heap
    blocks = [torch.ones(MIB // 2, dtype=torch.uint8) for _ in range(BLOCKS)]
    before = held()
    del blocks[::2]
    if before - held() > BLOCKS / 8 * MIB:
        pytest.skip("this allocator gives back by itself")
    return blocks


def test_freed_blocks_between_others_are_given_back(kept: list[torch.Tensor]) -> None:
    before = held()
    heap.trim()
    assert before - held() > BLOCKS / 8 * MIB
    assert all(block.all() for block in kept)


def test_a_run_gives_back_while_it_goes_on(kept: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "EVERY", 0.01)
    before, end = held(), time.monotonic() + 30
    with heap.trimmed():
        while before - held() < BLOCKS / 8 * MIB and time.monotonic() < end:
            time.sleep(0.01)
    assert before - held() > BLOCKS / 8 * MIB
    assert all(block.all() for block in kept)


def test_its_thread_ends_with_the_run() -> None:
    with pytest.raises(KeyboardInterrupt), heap.trimmed():
        assert [each for each in threading.enumerate() if each.name == "heap"]
        raise KeyboardInterrupt
    assert not [each for each in threading.enumerate() if each.name == "heap"]
