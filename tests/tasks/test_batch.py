"""What is known of a batch without a model."""

import torch

from hf_mabprune.tasks.batch import Batch, typical_example

IDS = torch.arange(12).view(3, 4)
CHOICES = torch.arange(24).view(3, 2, 4)
IMAGES = torch.rand(3, 3, 8, 8)


def test_tokens_are_counted_with_their_padding_and_over_all_choices() -> None:
    padded = Batch(input_ids=IDS, attention_mask=torch.tensor([[1, 1, 0, 0]] * 3))
    assert (padded.examples, padded.tokens, padded.sequences, padded.length) == (3, 12, 1, 4)
    choices = Batch(input_ids=CHOICES)
    assert (choices.examples, choices.tokens, choices.sequences, choices.length) == (3, 24, 2, 4)
    both = Batch(input_ids=IDS, decoder_input_ids=IDS[:, :2])
    assert (both.tokens, both.length) == (18, 4)
    assert (Batch(pixel_values=IMAGES).tokens, Batch(pixel_values=IMAGES).length) == (3, 0)


def test_positions_count_that_are_no_padding_a_row_a_sequence() -> None:
    mask = torch.zeros(3, 2, 4, dtype=torch.long)
    mask[0, 1, :3] = 1
    mask[2, 0, 0] = 1
    batch = Batch(input_ids=CHOICES, attention_mask=mask)
    counted = batch.counted("attention_mask", torch.zeros(6, 4, 5))
    assert counted.shape == (6, 4) and counted.dtype == torch.bool
    assert counted.nonzero().tolist() == [[1, 0], [1, 1], [1, 2], [4, 0]]
    assert batch.counted("decoder_attention_mask", torch.zeros(6, 7, 5)).shape == (6, 7)
    assert Batch(pixel_values=IMAGES).counted("attention_mask", torch.zeros(3, 5, 2)).all(), "nothing is padded"


def test_a_batch_goes_to_a_device_with_all_that_it_holds() -> None:
    there = Batch(input_ids=IDS, labels=torch.ones(3)).to(torch.device("meta"))
    assert {name: (tensor.device.type, tensor.shape) for name, tensor in there.items()} == {
        "input_ids": ("meta", IDS.shape),
        "labels": ("meta", (3,)),
    }
    assert Batch(input_ids=IDS).to(torch.device("cpu"))["input_ids"] is IDS, "nothing is copied that is there"


def test_examples_are_picked_and_repeated_in_all_inputs_alike() -> None:
    batch = Batch(input_ids=IDS, labels=torch.arange(3))
    assert batch.rows(slice(1, 2))["input_ids"].tolist() == [[4, 5, 6, 7]]
    assert batch.repeated(2)["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.repeated(2)["input_ids"].shape == (6, 4)


def test_a_typical_example_has_the_mean_length_and_no_padding() -> None:
    batches = [Batch(input_ids=torch.ones(2, length, dtype=torch.long), labels=torch.ones(2)) for length in (4, 9)]
    example = typical_example(batches)
    assert {name: tuple(tensor.shape) for name, tensor in example.items()} == {"input_ids": (1, 6)}
    assert typical_example(batches, 3)["input_ids"].shape == (1, 3)
    assert typical_example([Batch(input_ids=CHOICES)])["input_ids"].shape == (1, 1, 4), "one sequence, not all choices"
    assert typical_example([Batch(pixel_values=IMAGES)])["pixel_values"].shape == (1, 3, 8, 8)
