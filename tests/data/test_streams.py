import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from hf_mabprune.config import DatasetConfig, SplitsConfig, TaskConfig
from hf_mabprune.data.splits import load_splits, notes_on

BOUNDS = {"calibration": "train[150:]", "validation": "train[:50]", "test": "train[50:150]"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four files of 100 rows, numbered through."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{number}.json" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_text("\n".join(json.dumps({"text": f"{100 * number + row}"}) for row in range(100)))
    return [str(path) for path in paths]


def streamed(files: list[str], splits: dict[str, Any] | None = None, **settings: Any) -> TaskConfig:
    dataset = DatasetConfig(path="json", data_files={"train": list(files)}, streaming=True)
    amounts = {"calibration_examples": 20, "evaluation_examples": 30} | settings
    return TaskConfig(dataset=dataset, splits=SplitsConfig(**(BOUNDS if splits is None else splits)), **amounts)


def test_as_many_rows_as_asked_are_read_of_each_slice_alone(files: list[str]) -> None:
    loaded = load_splits(streamed(files))
    rows = {purpose: [int(text) for text in dataset["text"]] for purpose, dataset in loaded.items()}
    assert {purpose: len(set(numbers)) for purpose, numbers in rows.items()} == {
        "calibration": 80,  # three times as many for refits
        "validation": 30,
        "test": 30,
    }
    assert min(rows["calibration"]) >= 150 > max(rows["test"]) >= min(rows["test"]) >= 50 > max(rows["validation"])
    assert sorted(rows["test"]) != rows["test"] != list(range(50, 80))


def test_the_seed_draws_the_rows(files: list[str]) -> None:
    one, again, other = (load_splits(streamed(files), seed)["test"]["text"][:] for seed in (0, 0, 1))
    assert one == again != other


def test_a_stream_that_ends_early_gives_what_there_is(files: list[str]) -> None:
    loaded = load_splits(streamed(files, BOUNDS | {"calibration": "train[390:]"}, refit_examples=0))
    assert sorted(loaded["calibration"]["text"]) == [f"{row}" for row in range(390, 400)]


def test_what_was_streamed_is_said(files: list[str]) -> None:
    (note,) = notes_on(streamed(files, refit_examples=5))
    assert "25 rows of the calibration slice and 30 of every other" in note and "buffer of 10,000" in note


@pytest.mark.parametrize(
    ("splits", "settings", "message"),
    [
        (
            {"calibration": "train[:50%]", "test": "train[-9:]"},
            {},
            r"does not say how many rows it has, which splits.calibration 'train\[:50%\]', splits.test 'train\[-9:\]'",
        ),
        (BOUNDS | {"shuffle": True}, {}, "does not say how many rows it has, which splits.shuffle would take"),
        (BOUNDS, {"evaluation_examples": None}, "task.evaluation_examples must say how many rows"),
        (BOUNDS | {"test": "train[50:60]+train[70:80]"}, {}, "of a stream a purpose reads one slice, got splits.test"),
        (BOUNDS | {"test": "tset"}, {}, "no split 'tset' in the data set. Its splits: train"),
        (BOUNDS | {"test": "train"}, {}, "share rows of 'train'"),
        (
            BOUNDS | {"calibration": "train[400:]"},
            {},
            r"'train\[400:\]' must not be empty, but the stream ends before",
        ),
    ],
)
def test_what_a_stream_cannot_serve_is_refused(
    files: list[str], splits: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(streamed(files, splits, **settings))


def test_what_lies_on_disk_is_no_stream(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    for path in (str(tmp_path / "saved"), "sample-text"):
        task = streamed([], {}).model_copy(update={"dataset": DatasetConfig(path=path, streaming=True)})
        with pytest.raises(
            ValueError, match=f"'{path}' lies on disk and is no stream: set dataset.streaming to false"
        ):
            load_splits(task)
