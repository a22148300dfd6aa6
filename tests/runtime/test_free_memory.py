"""What a run may keep when nobody says: a part of what is free, in a control group of what that leaves."""

from pathlib import Path

import psutil
import pytest
import torch

from hf_mabprune.effects.reserve import LIMIT
from hf_mabprune.runtime import free_memory
from hf_mabprune.runtime.free_memory import make_reserve

CPU = torch.device("cpu")


def group(folder: Path, limit: str, used: int, files: int) -> Path:
    """A control group as the kernel shows it."""
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\ninactive_file {files}\n")
    return folder


def test_a_control_group_leaves_what_is_not_used_and_files_count_as_free(tmp_path: Path) -> None:
    assert free_memory.free_memory(group(tmp_path / "tight", "1000", 700, 200)) == 500
    free = psutil.virtual_memory().available
    assert free_memory.free_memory(group(tmp_path / "open", "max", 700, 200)) > 0.5 * free
    assert free_memory.free_memory(tmp_path / "none") > 0.5 * free


@pytest.mark.parametrize(("free", "limit"), [(2**30, 2**28), (2**40, LIMIT)])
def test_a_run_that_is_not_told_keeps_a_quarter_of_what_is_free(
    free: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "free_memory", lambda: free)
    assert make_reserve(None, CPU).limit == limit
    assert make_reserve(0.5, CPU).limit == 2**29
