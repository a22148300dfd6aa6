import warnings
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.together import check_splits
from tests.seeds import moved
from tests.tasks.tiny_tasks import bert, llama, make_tokenizer, regressor, task_of

LETTERS = list("abcdefghij")


def classifier(classes: int) -> Task:
    return task_of(bert(num_labels=classes), make_tokenizer("pair"))


def texts(count: int, seed: int, words: int = 8) -> list[str]:
    rng = np.random.default_rng(moved(seed))
    return [" ".join(rng.choice(LETTERS, words)) for _ in range(count)]


def splits(labels: dict[str, Any], words: int = 8) -> dict[str, Dataset]:
    """Different random texts for each purpose, with the labels given."""
    return {
        split: Dataset.from_dict({"text": texts(len(values), seed, words), "label": values})
        for seed, (split, values) in enumerate(labels.items())
    }


def in_turn(rows: int, classes: int) -> list[int]:
    return [row % classes for row in range(rows)]


def quiet(task: Task, data: dict[str, Dataset]) -> None:
    """Checks splits of which nothing is to be said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_splits(task, data) == []


def test_the_same_rows_for_two_purposes_are_refused_in_any_order() -> None:
    data = splits({"calibration": in_turn(60, 3), "test": in_turn(60, 3)})
    quiet(classifier(3), data)
    data["test"] = data["calibration"].shuffle(seed=1)
    with pytest.raises(
        ValueError, match="calibration and test hold the same 60 rows; take other data for one of them"
    ):
        check_splits(classifier(3), data)


def test_many_shared_rows_are_counted_aloud() -> None:
    data = splits({"calibration": in_turn(60, 3), "test": in_turn(60, 3)})
    data["test"] = Dataset.from_dict(
        {name: [*data["calibration"][:20][name], *data["test"][20:][name]] for name in data["test"].column_names}
    )
    with pytest.warns(UserWarning, match="20 of the 60 rows of test are in calibration, too"):
        said = check_splits(classifier(3), data)
    assert len(said) == 1


def test_data_of_few_different_rows_share_them_by_nature() -> None:
    quiet(classifier(2), splits({"calibration": in_turn(200, 2), "test": in_turn(200, 2)}, words=1))
    few = {
        split: Dataset.from_dict({"text": ["a"] * 30, "label": in_turn(30, 2)}) for split in ("calibration", "test")
    }
    quiet(classifier(2), few)


def test_a_slice_of_sorted_data_is_said_with_its_classes() -> None:
    data = {"calibration": in_turn(2000, 77), "validation": in_turn(1000, 7), "test": in_turn(1000, 77)}
    with pytest.warns(
        UserWarning, match="split 'validation' has 7 of the 77 classes in 1,000 rows; .* shuffle the file"
    ):
        assert len(check_splits(classifier(77), splits(data))) == 1
    with pytest.warns(UserWarning, match="has 7 of the 77 classes"):  # though no split has the others
        assert len(check_splits(classifier(77), splits(dict.fromkeys(data, in_turn(1000, 7))))) == 3


def test_a_single_class_is_refused_where_others_have_more() -> None:
    data = splits({"calibration": in_turn(100, 2), "validation": [1] * 100, "test": in_turn(100, 2)})
    with pytest.raises(
        ValueError, match="split 'validation' has examples of a single class in 100 rows, where the oth"
    ):
        check_splits(classifier(2), data)


def test_a_single_class_is_said_where_chance_may_have_left_the_others_out() -> None:
    with pytest.warns(UserWarning, match="split 'test' has 1 of the 2 classes in 20 rows"):
        check_splits(classifier(2), splits({"calibration": [0, 0, 1] * 20, "test": [0] * 20}))


def test_classes_that_chance_may_leave_out_are_not_missed() -> None:
    rng = np.random.default_rng(moved(5))
    drawn = {split: rng.integers(0, 77, count).tolist() for split, count in (("calibration", 500), ("test", 60))}
    quiet(classifier(77), splits(drawn))
    rare = {"calibration": [0] * 90 + [1] * 5 + [2] * 5, "test": [0] * 35 + [1] * 5}
    quiet(classifier(3), splits(rare))


def test_numbers_in_ranges_of_their_own_are_said() -> None:
    task = task_of(regressor(), make_tokenizer("pair"))
    data = {"calibration": np.linspace(0, 2, 50), "test": np.linspace(1, 3, 50)}
    quiet(task, splits(data))
    with pytest.warns(UserWarning, match="labels of calibration, 0 to 2, and of test, 3 to 5, have nothing in common"):
        check_splits(task, splits(data | {"test": np.linspace(3, 5, 50)}))


def test_texts_alone_are_compared_as_well() -> None:
    task = task_of(llama(), make_tokenizer("plain"), max_length=8)
    data = {split: Dataset.from_dict({"text": texts(20, seed)}) for seed, split in enumerate(("calibration", "test"))}
    quiet(task, data)
    with pytest.raises(ValueError, match="hold the same 20 rows"):
        check_splits(task, dict.fromkeys(data, data["test"]))


def test_any_fault_of_data_is_one_line() -> None:
    odd = Dataset.from_dict({"te\nxt": ["a"], "label": [0]})
    with pytest.raises(ValueError, match=r"split 'test' has none of the usual columns.* te; xt, label") as raised:
        check_splits(classifier(2), {"test": odd})
    assert "\n" not in str(raised.value)
