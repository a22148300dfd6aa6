"""Batches of encoded examples: which examples, in what order, with how much padding."""

import pytest
import torch
from datasets import Dataset, NamedSplit

from hf_mabprune.data.splits import drawn_rows
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import NO_TARGET
from hf_mabprune.tasks.sampling import LazyBatches, batches_of, encode_sample, split_by_length, thinned
from tests.seeds import moved
from tests.tasks.tiny_tasks import CASES, bert, make_tokenizer, task_of


def test_batches_are_split_by_length_and_nothing_else_changes() -> None:
    generator = torch.Generator().manual_seed(moved(0))
    lengths = torch.tensor([3, 12, 5, 4, 11, 2, 6, 5])
    attention = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(3, 16, (8, 12), generator=generator) * attention
    batch = Batch(input_ids=ids, attention_mask=attention, labels=torch.arange(8))
    parts = split_by_length(batch)
    assert [part["input_ids"].shape for part in parts] == [(2, 3), (2, 5), (2, 6), (2, 12)]
    for part in parts:
        for row, label in enumerate(part["labels"]):
            width = part["input_ids"].shape[1]
            assert torch.equal(part["input_ids"][row], ids[label, :width]) and not ids[label, width:].any()
    assert sorted(torch.cat([part["labels"] for part in parts]).tolist()) == list(range(8))
    assert len(split_by_length({**batch, "attention_mask": attention.flip(1)})) == 1, "padded on the left"
    even = torch.ones_like(attention)
    assert len(split_by_length({**batch, "attention_mask": even})) == 1
    assert len(split_by_length(Batch(input_ids=ids))) == 1


@pytest.mark.parametrize("name", list(CASES))
def test_batches_by_length_hold_the_same_examples_and_less_padding(name: str) -> None:
    task, _, dataset = CASES[name].build()
    encoded = task.encode(dataset)
    plain, sorted_ = (batches_of(task, encoded, 2, by_length=by_length) for by_length in (False, True))
    widths = [batch.length for batch in sorted_]
    assert widths == sorted(widths)
    assert sum(batch.examples * batch.length for batch in sorted_) <= sum(b.examples * b.length for b in plain)
    assert sum(batch.examples for batch in sorted_) == len(encoded)


def test_batches_keep_the_order_and_the_last_short_one() -> None:
    task, _, dataset = CASES["sequence_classification"].build()
    encoded = task.encode(dataset)
    assert [batch["labels"].tolist() for batch in batches_of(task, encoded, 2)] == [[0, 2], [1, 1], [0]]
    assert [batch["labels"].tolist() for batch in batches_of(task, encoded, 2, equal=True)] == [[0, 2], [1, 1]]
    assert [batch["labels"].tolist() for batch in batches_of(task, encoded, 8, equal=True)] == [[0, 2, 1, 1, 0]]
    with pytest.raises(ValueError, match="a batch takes at least one example"):
        batches_of(task, encoded.select([]), 2)


def test_large_batches_are_made_when_they_are_read() -> None:
    task, _, dataset = CASES["image_classification"].build()
    batches = batches_of(task, task.encode(dataset), 2)
    assert isinstance(batches, LazyBatches) and len(batches) == 3
    assert [batch["labels"].tolist() for batch in batches] == [[0, 2], [1, 1], [0]]
    assert batches[0] is not batches[0] and torch.equal(batches[0]["pixel_values"], batches[0]["pixel_values"])
    assert [batch.examples for batch in batches[1:]] == [2, 1] and batches[-1].examples == 1
    with pytest.raises(IndexError):
        batches[3]
    assert [batch["labels"].tolist() for batch in batches_of(task, task.encode(dataset), 2, equal=True)] == [
        [0, 2],
        [1, 1],
    ]


def test_a_row_that_cannot_be_encoded_is_named_as_in_its_split() -> None:
    texts = ["a"] * 20
    texts[int(drawn_rows(20, 5, seed=0)[2])] = ""
    dataset = Dataset.from_dict({"text": texts, "label": [0] * 20}, split=NamedSplit("train"))
    task = task_of(bert(), make_tokenizer("plain"))
    with pytest.raises(ValueError, match=f"split 'train': a text must have .* none in row {texts.index('')};"):
        encode_sample(task, dataset, 5, seed=0)


def test_so_many_tokens_of_each_example_count_and_no_others() -> None:
    labels = torch.arange(40).view(2, 20).masked_fill(torch.arange(20) >= torch.tensor([[20], [3]]), NO_TARGET)
    batches = [Batch(input_ids=torch.arange(40).view(2, 20), labels=labels)] * 2
    some = thinned(batches, 5, seed=0)
    first, second = (batch["labels"] != NO_TARGET for batch in some)
    assert first.sum(1).tolist() == second.sum(1).tolist() == [5, 3]
    assert torch.equal(some[0]["labels"][first], labels[first])
    assert torch.equal(some[0]["input_ids"], batches[0]["input_ids"])
    assert not torch.equal(first, second), "each batch has a draw of its own"
    assert thinned(batches, None, seed=0) is batches
