"""One limit for all that is kept; what does not fit comes back the same from a file, and goes with its owner."""

import gc

import pytest
import torch

from hf_mabprune.effects import reserve
from hf_mabprune.effects.reserve import Reserve


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_does_not_fit_comes_back_the_same(dtype: torch.dtype) -> None:
    small, values = Reserve(limit=100), torch.arange(60).view(6, 10).to(dtype)
    kept = small.kept(values.T)
    assert kept is not values and torch.equal(kept, values.T) and kept.dtype == dtype
    assert small.taken == 0 and small.disk == reserve.DISK - values.nbytes
    del kept
    gc.collect()
    assert small.disk == reserve.DISK


def test_memory_comes_back_with_the_end_of_what_held_it() -> None:
    roomy = Reserve(limit=2000)
    kept = [roomy.kept(torch.zeros(100)), roomy.kept(torch.zeros(100))]
    assert roomy.taken == 800 and not roomy.take(400)
    kept.pop()
    gc.collect()
    assert roomy.taken == 400 and roomy.take(400)


def test_a_disk_that_is_nearly_full_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    values = torch.zeros(100)
    assert Reserve(limit=0).stored(values) is None
    assert Reserve(limit=0).kept(values) is values, "beyond the limit, rather than lost"


def test_groups_fill_the_room_and_none_is_empty() -> None:
    assert list(Reserve(limit=20).groups([4, 5, 2, 30, 1], lambda size: size)) == [[4, 5], [2], [30], [1]]
    assert list(Reserve(limit=0).groups([1, 1], lambda size: size)) == [[1], [1]]
