"""Tables of the study: types, and splits that keep repeated rows together."""

from pathlib import Path

import numpy as np
import pytest

from research.studies.paper.tables import data_sets, processor_of, read_table, splits
from tests.research.studies.small_table import ROWS, small_table, write_tables


@pytest.mark.parametrize("classifies", [True, False])
def test_ten_splits_hold_all_rows_and_repeated_ones_on_one_side(classifies: bool) -> None:
    table = small_table(classifies)
    made, groups, seen = list(splits(table)), table.groups(), np.zeros(ROWS)
    assert len(made) == 10
    for split in made:
        parts = split.train, split.validation, split.test
        assert sorted(np.concatenate(parts)) == list(range(ROWS))
        assert sum(len(set(groups[part])) for part in parts) == len(set(groups)) < ROWS
        assert 0.5 <= len(split.train) / ROWS <= 0.7 and min(map(len, parts)) >= 0.1 * ROWS
        seen[split.test] += 1
    assert (seen == 2).all(), "each row is in two test splits"


def test_splits_have_the_same_shares_of_every_class() -> None:
    table = small_table()
    for split in splits(table):
        for name in table.classes:
            assert abs((table.target[split.test] == name).mean() - (table.target == name).mean()) < 0.1


def test_splits_follow_from_the_seed() -> None:
    tests = [next(splits(small_table(), seed)).test.tolist() for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_numbers_are_scaled_by_training_rows_alone() -> None:
    table = small_table(classifies=False)
    split = next(splits(table))
    data = data_sets(table, split)
    assert np.mean(data["train"]["label"][:]) == pytest.approx(0, abs=1e-12)
    assert np.std(data["train"]["label"][:]) == pytest.approx(1)
    seen, size = table.features.iloc[split.train], processor_of(table, split).medians["size"]
    assert size == seen["size"].median()


def test_a_table_is_read_as_its_index_says(tmp_path: Path) -> None:
    cells = write_tables(tmp_path)[0]["missing_cells"]
    again = read_table(tmp_path, "small")
    assert again.classes == ["high", "low", "middle"]
    assert processor_of(again, next(splits(again))).categories["doors"] == ["2", "3", "4"]
    with pytest.raises(ValueError, match="has no table 'other'; it has small, numbers"):
        read_table(tmp_path, "other")
    write_tables(tmp_path, missing_cells=0)
    with pytest.raises(ValueError, match=rf"must have 120 rows and 0 missing cells, .* got 120 and {cells}"):
        read_table(tmp_path, "small")
