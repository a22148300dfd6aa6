"""Losses of recovery against their formulas."""

import pytest
import torch

from hf_mabprune.recovery.losses import distillation_loss, hidden_distance, some_positions
from hf_mabprune.tasks.readout import NO_TARGET, Readout
from tests.seeds import moved


def test_the_loss_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(moved(0))
    z, z0 = torch.randn(2, 2, 2, 3, generator=generator).double()
    targets = torch.tensor([[2, NO_TARGET], [0, 1]])
    counted = [(0, 0, 2), (1, 0, 0), (1, 1, 1)]
    p, q = ((each / 3).softmax(-1) for each in (z0, z))
    soft = {(b, t): float((p[b, t] * (p[b, t] / q[b, t]).log()).sum()) for b, t, _ in counted}
    hard = {(b, t): -float(z[b, t].softmax(-1)[label].log()) for b, t, label in counted}
    expected = {place: 0.4 * 9 * soft[place] + 0.6 * hard[place] for place in soft}
    mean = (expected[0, 0] + (expected[1, 0] + expected[1, 1]) / 2) / 2
    assert float(distillation_loss(Readout(z, targets), Readout(z0, targets), 0.4, 3.0)) == pytest.approx(mean)
    labels = (hard[0, 0] + (hard[1, 0] + hard[1, 1]) / 2) / 2
    assert float(distillation_loss(Readout(z, targets), None, 0.0, 3.0)) == pytest.approx(labels)


def test_a_part_of_each_examples_positions_counts() -> None:
    targets = torch.arange(40).view(2, 20) % 3
    targets[1, 5:] = NO_TARGET
    readout = Readout(torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(moved(0))), targets)
    some = some_positions(readout, 0.25)
    assert some.positions().tolist() == [5, 2] and bool((some.counted() <= readout.counted()).all())
    assert not torch.equal(some.targets, some_positions(readout, 0.25).targets), "each time others"
    assert some_positions(readout, 1e-9).positions().tolist() == [1, 1]
    assert some_positions(readout, 1.0) is readout


def test_the_distance_of_hidden_states_is_relative_and_leaves_padding_out() -> None:
    dense = [torch.full((1, 3, 4), 2.0), torch.full((1, 3, 4), 100.0)]
    student = [state * torch.tensor([1.5, 1.0, 7.0]).view(1, 3, 1) for state in dense]
    assert float(hidden_distance(student, dense, torch.tensor([[1, 1, 0]]))) == pytest.approx(0.125)
    assert float(hidden_distance(student, dense)) == pytest.approx((0.25 + 0 + 36) / 3)
