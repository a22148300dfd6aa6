"""Rows of the study on disk: whole units, the same file whatever the order, other settings refused."""

from pathlib import Path

import pandas as pd
import pytest

from research.studies.paper.rows import (
    CLASSIFICATION,
    DEEP,
    DENSE,
    KEY,
    Row,
    add_results,
    read_results,
)
from research.studies.store import CELLS, Store, read_cells
from tests.research.studies.small_cells import small_cells


def row(draw: int, **columns: object) -> Row:
    given = {"method": DENSE, "metric": "accuracy", "score": 0.123456789, "dense_score": 0.9, **columns}
    return Row(suite=CLASSIFICATION, setting="iris", draw=draw, **given)  # type: ignore[arg-type]


def test_the_file_of_cells_depends_neither_on_the_order_nor_on_the_time_taken(tmp_path: Path) -> None:
    for folder, order in (("one", (0, 1, 2)), ("other", (2, 0, 1))):
        store = Store(tmp_path / folder, {"splits": 3}, KEY)
        for place, draw in enumerate(order):
            assert not store.has(f"classification/iris/{draw}")
            store.add(f"classification/iris/{draw}", [row(draw, seconds=float(place))])
            assert store.has(f"classification/iris/{draw}")
        store.collect(f"classification/iris/{draw}" for draw in order)
    assert (tmp_path / "one" / CELLS).read_bytes() == (tmp_path / "other" / CELLS).read_bytes()
    read = read_cells(tmp_path / "other", KEY)
    assert read["draw"].tolist() == [0, 1, 2] and read["seconds"].tolist() == [1.0, 2.0, 0.0]
    assert read["score"].tolist() == [0.123457] * 3


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    Store(tmp_path, {"splits": 3}, KEY)
    Store(tmp_path, {"splits": 3}, KEY)
    with pytest.raises(ValueError, match=r"settings.json: cells were made under other settings .* differ in splits"):
        Store(tmp_path, {"splits": 4}, KEY)


def test_the_same_cell_twice_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, {}, KEY)
    for unit in ("a", "b"):
        store.add(unit, [row(0)])
    with pytest.raises(ValueError, match="two rows have the key"):
        store.collect(["a", "b"])
    with pytest.raises(ValueError, match="suite must be one of classification, regression, deep, got 'other'"):
        Row(suite="other", setting="x", draw=0, method=DENSE, metric="r2", score=0, dense_score=0)


def runs_of(*draws: int, suite: str = CLASSIFICATION, **settings: object) -> list[pd.DataFrame]:
    """Cells of two settings as runs leave them, one run for each draw."""
    cells = small_cells(suites={suite: 2})
    runs = [cells[cells["draw"] == draw].copy() for draw in draws]
    for run in runs:
        run.attrs = {"version": 1, "protocol": {"splits": 2}, **settings}
    return runs


def test_results_add_up_over_runs_to_four_digits(tmp_path: Path) -> None:
    later, first = runs_of(1, 0)
    path = tmp_path / "results.parquet"
    assert add_results([later], path) == len(later)
    assert add_results([first], path) == len(first)
    kept = path.read_bytes()
    again = read_results(path)
    expected = pd.concat([first, later]).sort_values(KEY, ignore_index=True)
    pd.testing.assert_frame_equal(again[KEY], expected[KEY])
    assert (again["score"] - expected["score"]).abs().max() <= 5.1e-5
    assert again.attrs == {"tables": {"version": 1, "protocol": {"splits": 2}}}
    assert path.stat().st_size < 20_000
    assert add_results([later.assign(seconds=9.0), first], path) == 0 and path.read_bytes() == kept


def test_rows_that_cannot_stand_side_by_side_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    add_results(runs_of(0), path)
    kept = path.read_bytes()
    for other in ({"version": 2}, {"protocol": {"splits": 3}}):
        with pytest.raises(ValueError, match=rf"results.parquet: cells of tables .* differ in {next(iter(other))};"):
            add_results(runs_of(1, **other), path)
    (run,) = runs_of(0)
    run.loc[run.index[5], "score"] += 0.01
    with pytest.raises(ValueError, match=r"the cell .* has a score of .*different machines or code"):
        add_results([run], path)
    deep = runs_of(0, 1, suite=DEEP)
    deep[1]["dense_score"] += 0.01
    with pytest.raises(ValueError, match=r"draws of .* cut different base networks"):
        add_results(deep, path)
    assert path.read_bytes() == kept


def test_a_run_that_is_not_over_is_read_as_far_as_it_came(tmp_path: Path) -> None:
    store = Store(tmp_path, {"splits": 3}, KEY)
    with pytest.raises(OSError, match="has no finished unit yet"):
        read_cells(tmp_path, KEY)
    store.add("classification/iris/2", [row(2)])
    read = read_cells(tmp_path, KEY)
    assert read["draw"].tolist() == [2] and read.attrs == {"splits": 3}
    assert not (tmp_path / CELLS).exists()
