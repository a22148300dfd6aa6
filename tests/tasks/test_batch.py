"""What is known of a batch without a model."""

import torch

from hf_mabprune.tasks.batch import counted_positions, sequences_of, to_device, tokens_of

IDS = torch.arange(12).view(3, 4)
CHOICES = torch.arange(24).view(3, 2, 4)


def test_tokens_are_counted_with_their_padding_and_over_all_choices() -> None:
    padded = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 0, 0]] * 3)}
    assert (tokens_of(padded), sequences_of(padded)) == (12, 1)
    assert (tokens_of({"input_ids": CHOICES}), sequences_of({"input_ids": CHOICES})) == (24, 2)


def test_positions_count_that_are_no_padding_a_row_a_sequence() -> None:
    mask = torch.zeros(3, 2, 4, dtype=torch.long)
    mask[0, 1, :3] = 1
    mask[2, 0, 0] = 1
    counted = counted_positions({"input_ids": CHOICES, "attention_mask": mask})
    assert counted.shape == (6, 4) and counted.dtype == torch.bool
    assert counted.nonzero().tolist() == [[1, 0], [1, 1], [1, 2], [4, 0]]
    assert counted_positions({"input_ids": IDS}).all(), "no mask: nothing is padded"


def test_a_batch_goes_to_a_device_with_all_that_it_holds() -> None:
    batch = {"input_ids": IDS, "labels": torch.ones(3)}
    there = to_device(batch, torch.device("meta"))
    assert {name: (tensor.device.type, tensor.shape) for name, tensor in there.items()} == {
        "input_ids": ("meta", IDS.shape),
        "labels": ("meta", (3,)),
    }
    assert to_device(batch, torch.device("cpu"))["input_ids"] is IDS, "nothing is copied that is there"
