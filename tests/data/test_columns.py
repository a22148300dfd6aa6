import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_mabprune.data.columns import column_of, full_column, with_fields


def test_a_column_is_read_in_the_rows_that_were_selected() -> None:
    dataset = Dataset.from_dict({"text": list("abcd")}).select([3, 1]).with_format("numpy")
    assert column_of(dataset, "text").to_pylist() == ["d", "b"]


def test_categories_are_read_as_what_they_stand_for() -> None:
    dataset = Dataset(pa.table({"text": pa.array(list("aba")).dictionary_encode()}))
    assert full_column(dataset, "text", "train").to_pylist() == ["a", "b", "a"]


def test_the_first_missing_value_is_named() -> None:
    dataset = Dataset.from_dict({"text": ["a", None, None]})
    with pytest.raises(ValueError, match=r"split 'train', column 'text': no value in row 1; remove such rows$"):
        full_column(dataset, "text", "train")


def test_bytes_that_are_no_text_are_named() -> None:
    offsets, content = np.array([0, 1, 3], np.int32).tobytes(), b"a\xff\xfe"
    texts = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    with pytest.raises(ValueError, match="column 'text': the text in row 1 is no UTF-8"):
        full_column(Dataset(pa.table({"text": texts})), "text", "train")


def test_values_of_several_kinds_are_named() -> None:
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets keeps no values of several kinds")
    features = datasets.Features({"label": datasets.Json()})
    dataset = Dataset.from_dict({"label": [0, 1, "x"]}, features)
    with pytest.raises(ValueError, match="all values must be of one kind, got int in row 0 and str in row 2"):
        full_column(dataset, "label", "train")


ANSWERS = [{"text": ["a", "b"], "start": 3}, {"text": [], "start": 4}, {"text": ["c"], "start": 5}]


def test_fields_of_a_column_become_columns() -> None:
    dataset = Dataset.from_dict({"answers": ANSWERS, "id": [1, 2, 3]}).select([2, 1, 0])
    found = with_fields(dataset, ["answers.text.0", "answers.start", "id"])
    assert column_of(found, "answers.text.0").to_pylist() == ["c", None, "a"]
    assert column_of(found, "answers.start").to_pylist() == [5, 4, 3]
    assert "answers" not in found.column_names


def test_a_column_that_is_read_itself_stays_beside_its_fields() -> None:
    dataset = Dataset.from_dict({"answers": ANSWERS})
    found = with_fields(dataset, ["answers", "answers.start"])
    assert column_of(found, "answers").to_pylist() == ANSWERS and "answers.start" in found.column_names


def test_several_items_of_a_list_may_be_read_and_the_list_too() -> None:
    dataset = Dataset.from_dict({"answers": [{"text": ["a", "b"]}, {"text": ["c"]}]})
    found = with_fields(dataset, ["answers", "answers.text.1", "answers.text.0"])
    assert column_of(found, "answers.text.0").to_pylist() == ["a", "c"]
    assert column_of(found, "answers.text.1").to_pylist() == ["b", None]
    assert sorted(found.column_names) == ["answers", "answers.text.0", "answers.text.1"]


def test_a_column_that_is_named_like_a_field_stays() -> None:
    dataset = Dataset.from_dict({"answers": ANSWERS, "answers.text": list("xyz")})
    found = with_fields(dataset, ["answers.start"])
    assert column_of(found, "answers.text").to_pylist() == list("xyz")
    assert column_of(found, "answers.start").to_pylist() == [3, 4, 5]


def test_what_leads_nowhere_is_left_for_others_to_refuse() -> None:
    dataset = Dataset.from_dict({"answers": ANSWERS, "text": list("abc")})
    assert with_fields(dataset, ["answers.txt", "text.0", "other.x"]).column_names == ["answers", "text"]
