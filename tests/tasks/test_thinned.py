"""Windows of which some tokens count."""

import torch

from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import NO_TARGET
from hf_mabprune.tasks.sampling import thinned


def test_so_many_tokens_of_each_example_count_and_no_others() -> None:
    labels = torch.arange(40).view(2, 20).masked_fill(torch.arange(20) >= torch.tensor([[20], [3]]), NO_TARGET)
    batch = thinned(Batch(input_ids=torch.arange(40).view(2, 20), labels=labels), 5, seed=0)
    left = batch["labels"] != NO_TARGET
    assert left.sum(1).tolist() == [5, 3]
    assert torch.equal(batch["labels"][left], labels[left]) and torch.equal(
        batch["input_ids"].flatten(), torch.arange(40)
    )
    assert not torch.equal(left, thinned(Batch({**batch, "labels": labels}), 5, seed=1)["labels"] != NO_TARGET)
