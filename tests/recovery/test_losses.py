"""Losses of recovery against their formulas."""

import pytest
import torch

from hf_mabprune.recovery import losses
from hf_mabprune.recovery.losses import distillation_loss, hidden_distance
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


def test_working_in_parts_changes_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    z, z0 = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(moved(0)))
    targets = torch.arange(15).view(5, 3) % 4
    found = []
    for chunk in (losses.CHUNK, 24):
        monkeypatch.setattr(losses, "CHUNK", chunk)
        student = z.clone().requires_grad_()
        loss = distillation_loss(Readout(student, targets), Readout(z0, targets), 0.5, 2.0)
        loss.backward()
        found.append((loss.item(), student.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_the_distance_of_hidden_states_is_relative_and_leaves_padding_out() -> None:
    dense = [torch.full((1, 3, 4), 2.0), torch.full((1, 3, 4), 100.0)]
    student = [state * torch.tensor([1.5, 1.0, 7.0]).view(1, 3, 1) for state in dense]
    assert float(hidden_distance(student, dense, torch.tensor([[1, 1, 0]]))) == pytest.approx(0.125)
    assert float(hidden_distance(student, dense)) == pytest.approx((0.25 + 0 + 36) / 3)
