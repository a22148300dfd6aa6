from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from hf_mabprune.config import DatasetConfig, SplitsConfig, TaskConfig
from hf_mabprune.data.splits import load_splits


def rows(name: str) -> Dataset:
    return Dataset.from_dict({"text": [f"{name} {row}" for row in range(6)]}).with_format("numpy")


def load(folder: Path, calibration: str, validation: str, test: str, **settings: Any) -> dict[str, list[str]]:
    splits = SplitsConfig(calibration=calibration, validation=validation, test=test)
    loaded = load_splits(TaskConfig(dataset=DatasetConfig(path=str(folder), **settings), splits=splits))
    return {purpose: list(dataset["text"]) for purpose, dataset in loaded.items()}


def test_a_folder_of_several_splits_is_sliced(tmp_path: Path) -> None:
    DatasetDict(train=rows("train"), test=rows("test")).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved", "train[2:]", "train[:2]", "test[50%:]") == {
        "calibration": [f"train {row}" for row in range(2, 6)],
        "validation": ["train 0", "train 1"],
        "test": ["test 3", "test 4", "test 5"],
    }
    with pytest.raises(ValueError, match=r"no split 'dev' in the data set. Its splits: train, test"):
        load(tmp_path / "saved", "train", "dev", "test")


def test_a_single_data_set_is_the_split_train(tmp_path: Path) -> None:
    rows("all").save_to_disk(tmp_path / "saved")
    found = load(tmp_path / "saved", "train[4:]", "train[:2]", "train[2:4]")
    assert found["test"] == ["all 2", "all 3"]
    with pytest.raises(ValueError, match="share 1 rows of 'train'"):
        load(tmp_path / "saved", "train[4:]", "train[:50%]", "train[2:4]")


def test_settings_of_files_are_refused(tmp_path: Path) -> None:
    rows("all").save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"dataset.options means nothing to '.*', a folder of save_to_disk"):
        load(tmp_path / "saved", "train[4:]", "train[:2]", "train[2:4]", options={"sep": ";"})


def test_a_broken_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    rows("all").save_to_disk(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"data of '.*saved' cannot be read: ") as error:
        load(tmp_path / "saved", "train[4:]", "train[:2]", "train[2:4]")
    assert "\n" not in str(error.value)
