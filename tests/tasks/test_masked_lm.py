from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.head_readout import HeadReadout
from hf_mabprune.tasks.sampling import batches_of
from tests.tasks.tiny_tasks import filler, make_tokenizer, task_of

CLS, SEP, MASK = 2, 3, 4
LETTERS = "a b c d e f g h i j"


def task(**settings: Any) -> Task:
    return task_of(filler(), make_tokenizer("pair"), **settings)


def texts(*rows: str) -> Dataset:
    return Dataset.from_dict({"text": list(rows)})


def test_masked_tokens_alone_are_targets() -> None:
    (row,) = task().encode(texts(f"{LETTERS} {LETTERS}"))
    ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
    masked = ids == MASK
    assert masked.sum() == 3, "15% of 20 tokens"
    assert ((labels != -100) == masked).all()
    assert np.where(masked, labels, ids).tolist() == [CLS, *range(6, 16), *range(6, 16), SEP]


def test_a_text_is_cut_into_windows_and_an_empty_one_left_out() -> None:
    encoded = task(max_length=6).encode(texts("a b c d e f", "", "g"))
    whole = [
        [label if label != -100 else number for number, label in zip(row["input_ids"], row["labels"], strict=True)]
        for row in encoded
    ]
    assert whole == [[CLS, 6, 7, 8, 9, SEP], [CLS, 10, 11, SEP], [CLS, 12, SEP]]
    assert all(sum(label != -100 for label in row["labels"]) == 1 for row in encoded)


def test_what_is_masked_depends_on_the_window_alone() -> None:
    first = task().encode(texts(LETTERS, "a b c"))
    second = task().encode(texts("j i h", LETTERS))
    assert first[0] == second[1]
    others = task().encode(texts(*(f"{LETTERS} {letter}" for letter in "abcdefgh")))
    assert len({tuple(np.array(row["labels"]) != -100) for row in others}) > 1


def test_metrics_are_of_the_masked_tokens() -> None:
    (batch,) = batches_of(task(), task().encode(texts(LETTERS, "a b")), 8)
    logits = torch.zeros(*batch["labels"].shape, 16)
    logits[..., 0] = 1.0  # what is not masked is all wrong
    right = batch["labels"] != -100
    logits[right] = torch.nn.functional.one_hot(batch["labels"][right], 16) * torch.tensor(100.0)
    scores = task().read(logits, batch).scores(with_predictions=False)
    assert scores.positions.tolist() == [2, 1]
    assert task().compute_metrics(scores) == {"perplexity": pytest.approx(1.0), "token_accuracy": 1.0}


def test_the_head_of_a_large_vocabulary_stays_out_of_the_pass() -> None:
    model = filler(vocab_size=2000)
    large = task_of(model, make_tokenizer("pair"))
    (batch,) = batches_of(large, large.encode(texts(LETTERS, "a b")), 8)
    with torch.no_grad():
        readout = large.readout(model, batch)
        whole = large.read(model(**large.inputs(batch)).logits, batch)
    assert isinstance(readout, HeadReadout)
    torch.testing.assert_close(readout.losses(), whole.losses(), rtol=1e-5, atol=1e-6)


def test_texts_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="texts must have tokens, got none in all rows"):
        task().encode(texts("", ""))


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="the tokenizer must have a mask token, got none"):
        task_of(filler(), make_tokenizer("pair", mask_token=None))
