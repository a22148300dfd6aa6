"""Table processors: what a ColumnTransformer gives, to the last bit, kept as JSON."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hf_mabprune.checkpoints.processors import kind_of_processor, load_processor
from hf_mabprune.checkpoints.table_processor import FILE, TableProcessor, column_transformer, typed
from tests.seeds import moved

NUMBERS, CATEGORIES = ["size", "age", "old"], ["colour", "doors"]


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Numbers and categories, some of them missing; `age` lacks none."""
    rng = np.random.default_rng(moved(seed))
    size = np.where(rng.random(rows) < 0.2, np.nan, rng.normal(3, 2, rows))
    colour = np.where(rng.random(rows) < 0.2, None, rng.choice(["red", "green", "blue"], rows).astype(object))
    whole = {"age": rng.integers(0, 90, rows), "old": rng.random(rows) < 0.5}
    return pd.DataFrame({"size": size, "colour": colour, **whole, "doors": rng.integers(2, 5, rows)})


def test_it_gives_what_the_transformer_gives() -> None:
    train, test = table(80), table(40, seed=1)
    test.loc[0, "colour"], test.loc[1, "size"] = "mauve", None
    test["age"] = test["age"].astype(float).where(test.index != 2)
    processor = TableProcessor.fit(train, ["doors"])
    assert (list(processor.medians), list(processor.categories)) == (NUMBERS, CATEGORIES)
    fitted = column_transformer(NUMBERS, CATEGORIES).fit(typed(train, NUMBERS, CATEGORIES))
    for rows in (train, test):
        features = processor(rows)
        assert features.shape == (len(rows), len(processor))
        np.testing.assert_array_equal(features, fitted.transform(typed(rows, NUMBERS, CATEGORIES)))


def test_only_training_rows_count() -> None:
    processor = TableProcessor.fit(table(80), ["doors"])
    features = processor(table(80))
    assert processor.flagged == ["size"]
    np.testing.assert_allclose(features[:, :4].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(features[:, :4].std(0), 1)
    assert processor.categories["colour"] == ["blue", "green", "missing", "red"]
    np.testing.assert_array_equal(processor(table(80).assign(colour="mauve"))[:, 4:8], 0)


def test_a_category_of_numbers_is_the_same_with_and_without_gaps() -> None:
    processor = TableProcessor.fit(pd.DataFrame({"doors": [2, 3, 4]}), ["doors"])
    with_gap = pd.DataFrame({"doors": [2.0, None, 4.0]})
    assert processor(with_gap).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    processor = TableProcessor.fit(table(80), ["doors"])
    processor.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    again = load_processor("TableProcessor", str(tmp_path))
    assert again == processor
    np.testing.assert_array_equal(again(table(9, seed=2)), processor(table(9, seed=2)))
    assert kind_of_processor("TableProcessor") == "table processor"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("scales", [1, 2, 3, 0], "scales must be > 0"),
        ("means", [0.0], "means must be 4 numbers, one for each number and indicator, got 1"),
        ("medians", {"size": "3"}, "medians must be finite numbers"),
        ("flagged", ["weight"], "flagged must list columns that medians has"),
        ("categories", {"colour": [1]}, "the categories of colour must be texts"),
        ("more", 1, "it must hold medians, flagged, means, scales, categories"),
    ],
)
def test_a_file_that_no_fit_gives_is_one_line(part: str, value: object, message: str, tmp_path: Path) -> None:
    TableProcessor.fit(table(80), ["doors"]).save_pretrained(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**content, part: value}))
    with pytest.raises(ValueError, match=f"^the table processor of .* cannot be read .*{message}") as error:
        load_processor("TableProcessor", str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_model_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no table_processor.json\): save it beside the model \(processor\."):
        load_processor("TableProcessor", str(tmp_path))
