"""What the dense model says is asked once, and comes back the same from memory, from a file, or computed again."""

import pytest
import torch

from hf_mabprune.effects.dense_outputs import DenseOutputs
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.tasks.readout import Readout


def readout(seed: int) -> Readout:
    generator = torch.Generator().manual_seed(seed)
    return Readout(torch.randn(2, 3, 5, generator=generator), torch.tensor([[0, 1, -100], [4, -100, -100]]))


@pytest.mark.parametrize(("memory", "disk", "asked"), [(2**20, 0, 1), (0, 2**20, 1), (0, 0, 3), (260, 2**20, 1)])
def test_outputs_come_back_the_same_wherever_they_were_kept(memory: int, disk: int, asked: int) -> None:
    outputs, calls = DenseOutputs(Reserve(memory, disk)), []

    def make(seed: int) -> Readout:
        calls.append(seed)
        return readout(seed)

    for _ in range(3):
        for seed in (0, 1):
            recorded = outputs.recorded(("test", seed, 0), lambda seed=seed: make(seed))  # type: ignore[misc]
            assert torch.equal(recorded.readout.outputs, readout(seed).outputs)
            assert torch.equal(recorded.readout.targets, readout(seed).targets)
            assert torch.equal(recorded.distribution, readout(seed).distribution())
    assert calls.count(0) == calls.count(1) == asked


def test_no_record_holds_on_to_the_pass_that_made_it() -> None:
    weight = torch.ones(5, 5, requires_grad=True)
    outputs = DenseOutputs()
    kept = outputs.readout("key", lambda: Readout(readout(0).outputs @ weight, readout(0).targets))
    assert kept.outputs.grad_fn is None and not kept.outputs.requires_grad


def test_costs_add_up() -> None:
    one, other = Cost(1, 10.0, 5.0, 0.5), Cost(2, 1.0, 0.0, 0.25)
    assert one + other == Cost(3, 11.0, 5.0, 0.75)
    assert (one + other) - other == one and sum([one, other], Cost()) == one + other
