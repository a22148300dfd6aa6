import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_mabprune.data.columns import column_of, full_column


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
