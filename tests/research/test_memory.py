"""The memory that a run takes is seen, and so is what a plan foresees of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from research.benchmarks import memory, plans
from tests.problems import settings_for

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(not memory.MAPS.exists() or torch.cuda.is_available(), reason="reads what Linux says of a CPU"),
]


def test_what_is_allocated_is_seen_and_files_that_are_read_are_not(tmp_path: Path) -> None:
    size = 64 * memory.MIB
    (tmp_path / "weights").write_bytes(b"1" * size)
    with memory.watched() as nothing:
        mapped = torch.from_file(str(tmp_path / "weights"), shared=False, size=size, dtype=torch.uint8)
        assert int(mapped[:: 2**12].sum()) > 0
    with memory.watched() as peak:
        block = torch.ones(size, dtype=torch.uint8)
        peak.look()
        del block
    assert peak.bytes > nothing.bytes + size // 2


def test_a_row_a_size_says_what_is_held_and_what_should_be(tmp_path: Path, files: dict[str, str]) -> None:
    target = {"target": {"neurons": [0.2], "heads": [0.5]}}
    settings = settings_for(tmp_path, files, "llama", search={"memory": 0.25}, prune=target)
    table = memory.measure(settings)
    assert table["size"].tolist() == ["neurons-0.2-heads-0.5"] and table["limit"].tolist() == [256]
    assert (table["peak"] > 0).all() and (table["holds"] == (table["peak"] <= table["goal"])).all()


def test_settings_that_list_no_sizes_are_measured_at_three(tmp_path: Path, files: dict[str, str]) -> None:
    prune = settings_for(tmp_path, files, "llama").prune
    assert [size.target.parameters for size in memory.sizes_of(prune)] == [0.1, 0.3, 0.5]


def test_a_plan_stands_beside_its_run(tmp_path: Path, files: dict[str, str]) -> None:
    table = plans.measure([settings_for(tmp_path, files, "llama")])
    run, median, worst = (table.iloc[number] for number in range(3))
    assert run["of_time"] == run["planned"] / run["seconds"]
    assert median["of_time"] == worst["of_time"] == pytest.approx(np.exp(abs(np.log(run["of_time"]))))
