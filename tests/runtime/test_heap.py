"""What is freed between blocks that stay goes back to the system."""

import threading
import time

import pytest
import torch

from hf_mabprune.runtime import heap
from hf_mabprune.runtime.heap import held

MIB = 2**20
BLOCKS = 256

pytestmark = pytest.mark.skipif(not heap.can_trim(), reason="this C library keeps what is freed")


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


def test_a_run_that_grows_gives_back_while_it_goes_on(
    kept: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap, "EVERY", 0.01)
    monkeypatch.setattr(heap, "GROWTH", 32 * MIB)
    before, grown = held(), list[torch.Tensor]()

    def given_back() -> int:
        return before + sum(block.nbytes for block in grown) - held()

    with heap.trimmed():
        while given_back() < BLOCKS / 8 * MIB and len(grown) < 100:
            grown.append(torch.ones(4 * MIB, dtype=torch.uint8))
            time.sleep(0.05)
        assert given_back() > BLOCKS / 8 * MIB
    assert all(block.all() for block in kept)


def test_a_run_that_has_not_grown_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trims, asked, own = list[int](), threading.Event(), heap.held

    def seen() -> int:
        asked.set()
        return own()

    for name, value in {"EVERY": 0.01, "trim": lambda: trims.append(1), "held": seen}.items():
        monkeypatch.setattr(heap, name, value)
    with heap.trimmed():
        for _ in range(5):
            asked.clear()
            assert asked.wait(30)
    assert not trims


def test_its_thread_ends_with_the_run() -> None:
    with pytest.raises(KeyboardInterrupt), heap.trimmed():
        assert [each for each in threading.enumerate() if each.name == "heap"]
        raise KeyboardInterrupt
    assert not [each for each in threading.enumerate() if each.name == "heap"]
