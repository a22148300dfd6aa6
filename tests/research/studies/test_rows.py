"""Rows of the study on disk: whole units, the same file whatever the order, other settings refused."""

from pathlib import Path

import pandas as pd
import pytest

from research.studies.paper.rows import (
    CELLS,
    CLASSIFICATION,
    DENSE,
    Row,
    Store,
    read_cells,
    read_results,
    write_results,
)
from tests.research.studies.small_cells import small_cells


def row(draw: int, **columns: object) -> Row:
    given = {"method": DENSE, "metric": "accuracy", "score": 0.123456789, "dense_score": 0.9, **columns}
    return Row(suite=CLASSIFICATION, setting="iris", draw=draw, **given)  # type: ignore[arg-type]


def test_the_file_of_cells_depends_neither_on_the_order_nor_on_the_time_taken(tmp_path: Path) -> None:
    for folder, order in (("one", (0, 1, 2)), ("other", (2, 0, 1))):
        store = Store(tmp_path / folder, {"splits": 3})
        for place, draw in enumerate(order):
            assert not store.has(f"classification/iris/{draw}")
            store.add(f"classification/iris/{draw}", [row(draw, seconds=float(place))])
            assert store.has(f"classification/iris/{draw}")
        store.collect(f"classification/iris/{draw}" for draw in order)
    assert (tmp_path / "one" / CELLS).read_bytes() == (tmp_path / "other" / CELLS).read_bytes()
    read = read_cells(tmp_path / "other")
    assert read["draw"].tolist() == [0, 1, 2] and read["seconds"].tolist() == [1.0, 2.0, 0.0]
    assert read["score"].tolist() == [0.123457] * 3


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    Store(tmp_path, {"splits": 3})
    Store(tmp_path, {"splits": 3})
    with pytest.raises(ValueError, match=r"settings.json says that this folder was begun under other settings"):
        Store(tmp_path, {"splits": 4})


def test_the_same_cell_twice_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, {})
    for unit in ("a", "b"):
        store.add(unit, [row(0)])
    with pytest.raises(ValueError, match="two rows have the key"):
        store.collect(["a", "b"])
    runs = [store.read([unit]) for unit in ("a", "b")]
    runs[0].attrs = runs[1].attrs = {"protocol": {}}
    with pytest.raises(ValueError, match="two runs have the cell"):
        write_results(runs, tmp_path / "results.parquet")
    with pytest.raises(ValueError, match="suite must be one of classification, regression, deep, got 'other'"):
        Row(suite="other", setting="x", draw=0, method=DENSE, metric="r2", score=0, dense_score=0)


def test_results_come_back_as_they_were_to_four_digits(tmp_path: Path) -> None:
    cells = small_cells(suites={CLASSIFICATION: 2})
    runs = [cells[cells["draw"] == draw] for draw in (1, 0)]
    runs[0].attrs = runs[1].attrs = {"protocol": {"splits": 2}, "other": "settings"}
    write_results(runs, tmp_path / "results.parquet")
    again = read_results(tmp_path / "results.parquet")
    keys = ["setting", "draw", "method", "reward", "variant", "fraction", "tuned"]
    expected = cells.sort_values(["suite", *keys], ignore_index=True)
    pd.testing.assert_frame_equal(again[keys], expected[keys])
    assert (again["score"] - expected["score"]).abs().max() <= 5.1e-5
    assert again.attrs == {"tables": {"splits": 2}}
    assert (tmp_path / "results.parquet").stat().st_size < 20_000
    runs[1].attrs = {"protocol": {"splits": 3}}
    with pytest.raises(ValueError, match="the runs of tables were made by different protocols"):
        write_results(runs, tmp_path / "results.parquet")
