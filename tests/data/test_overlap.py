import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image

from hf_mabprune.data.overlap import repeated, row_hashes, same_rows, shared


def test_rows_are_compared_by_what_they_hold() -> None:
    one = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0], "number": [1, 2, 3]})
    other = Dataset.from_dict({"text": ["c", "a", "b"], "label": [0, 0, 0], "number": [4, 5, 6]})
    texts, pairs = ["text"], ["text", "label"]
    assert same_rows(row_hashes(one, texts), row_hashes(other, texts))
    assert not same_rows(row_hashes(one, pairs), row_hashes(other, pairs))
    assert shared(row_hashes(one, pairs), row_hashes(other, pairs)) == 2
    assert (row_hashes(one.select([2, 0]), pairs) == row_hashes(one, pairs)[[2, 0]]).all()


def test_swapped_columns_are_other_rows() -> None:
    rows = Dataset.from_dict({"one": ["a"], "other": ["b"]})
    assert row_hashes(rows, ["one", "other"]) != row_hashes(rows, ["other", "one"])


def test_lists_and_images_are_compared_too() -> None:
    choices = Dataset.from_dict({"choices": [["a", "b"], ["b", "a"], ["a", "b"]]})
    assert repeated(row_hashes(choices, ["choices"])) == 2 / 3
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    images = [PIL.Image.fromarray(np.roll(pixels, row)) for row in (0, 1, 0)]
    pictures = Dataset.from_dict({"image": images}, Features({"image": Image()}))
    assert repeated(row_hashes(pictures, ["image"])) == 2 / 3


def test_repetition_is_what_draws_of_few_different_rows_share() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 20, 200).astype(np.uint64) for _ in range(2))
    assert repeated(one) == 1
    assert shared(one, other) == 200
    assert repeated(np.arange(5, dtype=np.uint64)) == 0
    assert repeated(np.array([], dtype=np.uint64)) == 0
