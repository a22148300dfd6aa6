from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
)

from hf_mabprune.data import given
from hf_mabprune.data.given import as_dataset, given_splits

TEXTS, LABELS = ["a b c", "c d", "e f", "g"], [0, 1, 2, 1]
COLUMNS = {"text": TEXTS, "label": LABELS}
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def plain() -> Dataset:
    return Dataset.from_dict(COLUMNS)


def backwards() -> Dataset:
    return Dataset.from_dict({name: values[::-1] for name, values in COLUMNS.items()})


def rows() -> Iterator[dict[str, Any]]:
    yield from ROWS


def endless() -> Iterator[dict[str, Any]]:
    while True:
        yield ROWS[0]


class OfRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set of torch that knows its length."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return ROWS[row]


class Flow(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A data set of torch that is a stream."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return rows()


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({**COLUMNS, **columns}, index=[7, 3, 3, 1])


SAME: dict[str, Callable[[], Any]] = {
    "numpy": lambda: plain().with_format("numpy"),
    "torch": lambda: plain().with_format("torch", columns=["label"]),
    "pandas": lambda: plain().with_format("pandas"),
    "arrow": lambda: plain().with_format("arrow"),
    "transform": lambda: plain().with_transform(lambda batch: {**batch, "label": torch.tensor(batch["label"])}),
    "selected": lambda: backwards().select([3, 2, 1, 0]).with_format("numpy"),
    "filtered": lambda: concatenate_datasets([plain(), backwards()]).filter(lambda _, row: row < 4, with_indices=True),
    "concatenated": lambda: concatenate_datasets([plain().select([0]), plain().select([1, 2, 3])]),
    "categories": lambda: Dataset(pa.table({"text": pa.array(TEXTS).dictionary_encode(), "label": LABELS})),
    "stream": lambda: IterableDataset.from_generator(rows),
    "stream_mapped": lambda: IterableDataset.from_generator(rows).map(lambda row: row),
    "stream_of_tensors": lambda: plain().to_iterable_dataset().with_format("torch"),
    "frame": frame,
    "frame_of_categories": lambda: frame(text=pd.Categorical(TEXTS), label=pd.array(LABELS, dtype="Int64")),
    "frame_of_arrow": lambda: frame().convert_dtypes(dtype_backend="pyarrow"),
    "table": lambda: pa.table({"text": pa.array(TEXTS, pa.large_string()), "label": pa.array(LABELS, pa.int8())}),
    "table_of_views": lambda: pa.table({"text": pa.array(TEXTS, pa.string_view()), "label": LABELS}),
    "table_of_runs": lambda: pa.table({"text": pc.run_end_encode(pa.array(TEXTS)), "label": LABELS}),
    "columns": lambda: COLUMNS,
    "columns_of_arrays": lambda: {"text": np.array(TEXTS), "label": torch.tensor(LABELS)},
    "columns_of_series": lambda: {"text": frame()["text"], "label": frame()["label"]},
    "rows": lambda: ROWS,
    "generator": rows,
    "torch_rows": OfRows,
    "torch_stream": Flow,
    "torch_subset": lambda: torch.utils.data.Subset(backwards(), [3, 2, 1, 0]),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_people_have_is_read_as_the_same_columns(kind: str) -> None:
    dataset = as_dataset(SAME[kind](), "calibration")
    assert dataset[:] == COLUMNS
    assert dataset.format["type"] is None


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "got None, of no columns; give a datasets.Dataset"),
    "path": (lambda: Path("train.csv"), r"a text names no data here, got 'train\.csv': load them first"),
    "splits": (lambda: DatasetDict(train=plain(), test=plain()), r"several splits, train, test: .* data\['train'\]"),
    "stream_of_splits": (
        lambda: IterableDatasetDict(a=plain().to_iterable_dataset()),
        r"name one, e\.g\. data\['a'\]",
    ),
    "loader": (lambda: torch.utils.data.DataLoader(OfRows()), "a DataLoader gives batches, not rows"),
    "tuples": (
        lambda: list(zip(TEXTS, LABELS, strict=True)),
        "rows must be dicts, column -> value, got tuple as row 0",
    ),
    "one_column": (lambda: plain()["text"], "got Column, of no columns"),
    "number": (lambda: 5, "got int, of no columns"),
    "one_row": (lambda: ROWS[0], "column 'text' must be a list of values, got str"),
    "uneven": (lambda: {"text": TEXTS, "label": [0]}, "expected length 4 but got length 1"),
    "twice": (lambda: pd.concat([frame(), frame()], axis=1), "Duplicate column names"),
    "twice_in_a_table": (lambda: pa.table([[1], [2]], ["a", "a"]), "different names, got 'a' twice"),
    "of_several_kinds": (lambda: frame(label=[0, 1, "x", 2]), "Could not convert 'x'"),
    "too_large": (lambda: {"text": TEXTS, "label": [2**70] * 4}, "OverflowError"),
    "no_text": (lambda: [{"text": "\ud800", "label": 0}], "no text in UTF-8"),
    "broken_transform": (lambda: plain().with_transform(lambda batch: batch["word"]), "there is no 'word'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_columns_is_refused_in_one_line(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=f"the data for calibration cannot be used: .*{message}") as raised:
        as_dataset(make(), "calibration")
    assert "\n" not in str(raised.value)


def test_missing_values_stay_missing() -> None:
    assert as_dataset(frame(text=["a", np.nan, None, "b"]), "test")["text"][:] == ["a", None, None, "b"]
    assert as_dataset([{"text": "a"}, {"text": "b", "label": 1}], "test")["label"][:] == [None, 1]


@pytest.mark.parametrize("make", [lambda: [], lambda: plain().select([]), lambda: frame().iloc[:0], dict])
def test_no_rows_are_a_data_set_without_rows(make: Callable[[], Any]) -> None:
    assert len(as_dataset(make(), "test")) == 0


def test_streams_and_transforms_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "MOST_ROWS", 3)
    assert len(as_dataset(IterableDataset.from_generator(rows).take(3), "test")) == 3
    for stream in (endless(), IterableDataset.from_generator(endless), Flow()):
        with pytest.raises(ValueError, match=r"a stream must end within 3 rows; take some of it"):
            as_dataset(stream, "test")
    with pytest.raises(ValueError, match="at most 3 rows go through a transform here, got 4"):
        as_dataset(plain().with_transform(dict), "test")


def test_a_transform_is_read_once() -> None:
    rng = np.random.default_rng(0)
    noisy = plain().with_transform(lambda batch: {**batch, "noise": rng.normal(size=len(batch["text"])).tolist()})
    dataset = as_dataset(noisy, "test")
    assert dataset["noise"][:] == dataset["noise"][:]


def test_names_of_classes_and_images_come_through() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y", "z"])})
    stream = Dataset.from_dict(COLUMNS, features).to_iterable_dataset()
    assert as_dataset(stream, "test").features == features
    picture = PIL.Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    pictures = Dataset.from_dict({"image": [picture]}, Features({"image": Image()}))
    stored = pictures.with_format("arrow")[:]["image"].to_pylist()
    streamed = as_dataset(pictures.to_iterable_dataset(), "test")
    assert streamed.with_format("arrow")[:]["image"].to_pylist() == stored


def test_one_data_set_serves_one_purpose() -> None:
    one, other, third = plain(), backwards(), plain().select([1])
    assert list(given_splits(calibration=one, validation=other, test=third)) == ["calibration", "validation", "test"]
    for splits in ({"calibration": one, "validation": one}, {"calibration": one.select([0]), "test": one.select([0])}):
        with pytest.raises(ValueError, match=r"calibration and \w+ must share no examples, but are one and the same"):
            given_splits(**splits)
    stream = rows()
    with pytest.raises(ValueError, match="are one and the same data"):
        given_splits(calibration=one, validation=stream, test=stream)
