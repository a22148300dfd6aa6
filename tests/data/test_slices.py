import pytest
from datasets import Dataset

from hf_mabprune.data.slices import check_slices, cut_out

SIZES = {"train": 3000, "validation": 100, "test": 100}


def slices(calibration: str, validation: str, test: str = "test") -> dict[str, str]:
    return {"calibration": calibration, "validation": validation, "test": test}


@pytest.mark.parametrize(
    ("calibration", "validation"),
    [
        ("train", "validation"),
        ("train[2000:]", "train[:2000]"),
        ("train[50%:]", "train[:50%]"),
        ("train[:-1000]", "train[-1000:]"),
        ("train[:10%]", "train[300:600]"),
        ("train[:1000]+train[2000:]", "train[1000:2000]"),
    ],
)
def test_disjoint_slices_are_accepted(calibration: str, validation: str) -> None:
    check_slices(slices(calibration, validation), SIZES)
    check_slices(slices(calibration, validation))


@pytest.mark.parametrize(
    ("calibration", "validation", "shared"),
    [
        ("train", "train", "3,000"),
        ("train[1000:]", "train[:2000]", "1,000"),
        ("train[:60%]", "train[50%:]", "300"),
        ("train[:-1000]", "train[1999:]", "1"),
        ("train[:10%]", "train[299:600]", "1"),
        ("validation+train[:10]", "train[5:]", "5"),
    ],
)
def test_overlaps_are_refused(calibration: str, validation: str, shared: str) -> None:
    message = f"calibration '.*' and validation '.*' share {shared} rows of 'train'; slice them apart"
    with pytest.raises(ValueError, match=message):
        check_slices(slices(calibration, validation), SIZES)


def test_an_overlap_with_the_test_split_is_refused_too() -> None:
    with pytest.raises(ValueError, match="validation 'test' and test 'test"):
        check_slices(slices("train", "test", "test[:10]"), SIZES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("trian", r"splits.calibration: no split 'trian' in the data set. Did you mean 'train'\? Its splits: train"),
        ("train[5000:]", r"'train\[5000:\]' must not be empty, but it holds no row \('train' has 3,000 rows\)"),
        ("train[10:10]", r"'train\[10:10\]' must not be empty"),
        ("train[0.5:]", r"splits.calibration: 'train\[0.5:\]' is no slice"),
        ("train[:200%]", r"splits.calibration: 'train\[:200%\]' is no slice"),
    ],
)
def test_slices_that_select_nothing_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_slices(slices(spec, "validation"), SIZES)


def test_slices_are_cut_out_of_whole_splits_and_say_what_they_are() -> None:
    datasets = {name: Dataset.from_dict({"text": [f"{name} {row}" for row in range(4)]}) for name in ("one", "other")}
    found = cut_out(datasets, {"calibration": "one[2:]+other[:1]", "test": "other[50%:]"})
    assert {purpose: rows["text"][:] for purpose, rows in found.items()} == {
        "calibration": ["one 2", "one 3", "other 0"],
        "test": ["other 2", "other 3"],
    }
    assert str(found["test"].split) == "other[50%:]"
