"""Texts of files, for a vocabulary."""

from pathlib import Path

import pytest
from datasets import Dataset

from hf_mabprune.data.corpus import check_texts, texts_of
from hf_mabprune.errors import OutsideError


def test_plain_text_comes_by_lines_with_their_ends(tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text("one\n\n two\n", encoding="utf-8")
    assert "".join(text for texts in texts_of(str(file)) for text in texts) == "one\n\n two\n"


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv"])
def test_all_texts_of_a_table_count_and_nothing_else(kind: str, tmp_path: Path) -> None:
    rows = {"text": ["a b", "c"], "number": [1, 2]}
    if kind != "csv":
        rows["answers"] = [{"text": ["d"], "start": [0]}, {"text": ["e", "f"], "start": [1, 2]}]
    file = tmp_path / f"rows.{kind}"
    table = Dataset.from_dict(rows)
    table.to_parquet(file) if kind == "parquet" else table.to_csv(file) if kind == "csv" else table.to_json(file)
    texts = sorted(text for texts in texts_of(str(file)) for text in texts)
    assert texts == (["a b", "c"] if kind == "csv" else ["a b", "c", "d", "e", "f"])


def test_a_file_that_is_not_there_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"prune\.vocabulary\.keep: no file 'missing\.txt'.*called calibration"
    ):
        check_texts(["missing.txt"])
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(OutsideError, match=r"prune\.vocabulary\.keep: .*broken\.parquet cannot be read"):
        list(texts_of(str(tmp_path / "broken.parquet")))
