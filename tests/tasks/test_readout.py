import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from hf_mabprune.tasks import readout as module
from hf_mabprune.tasks.metrics import load_metric, measure
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.scores import Scores
from tests.seeds import moved

LOGITS = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]], [[0.0, math.log(3)], [5.0, 5.0]]])
TARGETS = torch.tensor([[0, 0], [0, -100]])


def test_hand_computed_example() -> None:
    """Probabilities of the right class: 1/2 and 3/4; 1/4 and nothing."""
    readout = Readout(LOGITS, TARGETS)
    assert readout.losses().tolist() == pytest.approx([(math.log(2) + math.log(4 / 3)) / 2, math.log(4)], abs=1e-7)
    assert readout.positions().tolist() == [2, 1]
    assert readout.correct().tolist() == [1.0, 0.0]


def test_every_counted_position_is_scored() -> None:
    """Of three tokens, the first alone is right; a fourth does not count, and the second example has one answer."""
    largest = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]])
    targets = torch.tensor([[1, 1, 1, -100], [-100, -100, 0, -100]])
    scores = Readout(one_hot(largest, 2).float(), targets).scores()
    assert scores.answers.tolist() == [3, 1]
    assert scores.predicted.tolist() == [1, 0, 0, 0]
    assert scores.reference.tolist() == [1, 1, 1, 0]
    first = scores.take(np.array([0]))
    accuracy = load_metric("accuracy", ("predictions", "references"), 2)
    assert measure("accuracy", accuracy, {"predictions": first.predicted, "references": first.reference}) == {
        "accuracy": pytest.approx(1 / 3)
    }
    assert scores.correct.tolist() == [pytest.approx(1 / 3), 1.0]


def test_predictions_that_no_metric_sees_are_not_kept() -> None:
    scores = Readout(LOGITS, TARGETS).scores(with_predictions=False)
    assert scores.answers.tolist() == [0, 0] and not len(scores.predicted) and not len(scores.reference)
    assert scores.losses.tolist() == Readout(LOGITS, TARGETS).losses().tolist()


def test_logits_that_are_no_numbers_are_not_right_by_luck() -> None:
    logits = LOGITS.clone()
    logits[0, 0, 0] = logits[1, 1, 0] = math.nan  # of the second example, at a position that does not count
    readout = Readout(logits, TARGETS)
    assert readout.predictions()[0].tolist() == [-1, 0, 1]
    assert math.isnan(readout.correct()[0]) and readout.correct()[1] == 0.0


def test_an_example_without_targets_has_no_loss() -> None:
    readout = Readout(LOGITS, torch.tensor([[0, 0], [-100, -100]]))
    assert readout.losses()[1] == 0.0
    assert readout.positions()[1] == 0


def test_half_precision_and_large_logits_stay_exact() -> None:
    """The softmax of [1000, 990] in bfloat16 neither overflows nor loses the small loss."""
    readout = Readout(torch.tensor([[[1000.0, 992.0]]], dtype=torch.bfloat16), torch.tensor([[0]]))
    assert float(readout.losses()) == pytest.approx(math.log1p(math.exp(-8)), rel=1e-12)


def test_chunks_change_neither_losses_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(moved(0))
    logits, targets = torch.randn(7, 3, 5), torch.randint(0, 5, (7, 3))
    targets[2, 1] = -100

    def result() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = logits.clone().requires_grad_()
        losses = Readout(leaf, targets).losses()
        losses.square().sum().backward()
        assert leaf.grad is not None
        return losses.detach(), leaf.grad

    whole = result()
    monkeypatch.setattr(module, "CHUNK", 2 * 3 * 5)
    parts = result()
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert whole[1].abs().sum() > 0


def test_memory_stays_small_for_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one example's logits are ever widened together."""
    widened = []
    real = module.cross_entropy
    monkeypatch.setattr(module, "cross_entropy", lambda x, *a, **k: widened.append(x.shape) or real(x, *a, **k))
    Readout(torch.zeros(1, 1, 1).expand(4, 50, 50_000), torch.zeros(4, 50, dtype=torch.long)).losses()
    assert widened == [(50, 50_000)] * 4


def test_scores_concatenate_and_take() -> None:
    first, second = Readout(LOGITS, TARGETS).scores(), Readout(LOGITS[:1], TARGETS[:1]).scores()
    both = Scores.concatenate([first, second])
    assert both.positions.tolist() == [2, 1, 2]
    again = both.take(np.array([1, 1, 2]))
    assert again.positions.tolist() == again.answers.tolist() == [1, 1, 2]
    assert both.predicted.tolist() == [0, 0, 1, 0, 0]
    assert again.predicted.tolist() == [1, 1, 0, 0], "an example is drawn with all of its answers"
    assert both.take(np.array([], dtype=np.int64)).predicted.tolist() == []
    assert again.losses.tolist() == [first.losses[1], first.losses[1], second.losses[0]]


def test_divergence_by_hand() -> None:
    """Of (1/2, 1/2) from (3/4, 1/4), and of equal outputs; the second example counts its first position alone."""
    original = Readout(LOGITS.flip(1), TARGETS)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    back = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    other = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    found = Readout(LOGITS, TARGETS).divergence(original)
    assert found.tolist() == pytest.approx([(first + back) / 2, other], abs=1e-7)
    again = Readout(LOGITS, TARGETS).divergence(original, original.distribution())
    assert torch.equal(found, again)


def test_positions_that_do_not_count_may_be_broken() -> None:
    broken = LOGITS.clone()
    broken[1, 1] = torch.nan
    found = Readout(broken, TARGETS).divergence(Readout(LOGITS, TARGETS))
    assert found.tolist() == [0.0, 0.0]


def test_divergence_has_gradients() -> None:
    """d KL(p || q) / dz = q - p, over the positions that count."""
    leaf = (LOGITS + torch.tensor([0.5, 0.0])).requires_grad_()
    original = Readout(LOGITS, TARGETS)
    Readout(leaf, TARGETS).divergence(original).sum().backward()
    assert leaf.grad is not None
    expected = (leaf.detach().softmax(-1) - LOGITS.softmax(-1)) / torch.tensor([2.0, 1.0])[:, None, None]
    expected[1, 1] = 0
    torch.testing.assert_close(leaf.grad, expected)


def near(classes: int, positions: int = 1, size: float = 1e-3) -> tuple[Readout, Readout]:
    """A readout whose logits differ a little from the dense model's, and that of the dense model."""
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(4, positions, classes, generator=generator, dtype=torch.float64)
    change = size * torch.randn(4, positions, classes, generator=generator, dtype=torch.float64)
    targets = torch.zeros(4, positions, dtype=torch.long)
    targets[1, 1:] = -100
    return Readout(logits + change, targets), Readout(logits, targets)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_half_the_squares_of_exact_coordinates_are_the_divergence(classes: int) -> None:
    """To second order: what is left out is a thousandth, the size of the change."""
    readout, dense = near(classes)
    coordinates = list(readout.coordinates(dense, samples=5, seed=0))
    assert len(coordinates) == (1 if classes == 2 else classes)
    halved = sum(u.square() for u in coordinates) / 2
    torch.testing.assert_close(halved, readout.divergence(dense), rtol=0.01, atol=0)
    assert all(not u.any() for u in dense.coordinates(dense, 5, 0)), "nothing moved"


def test_drawn_coordinates_give_the_divergence_in_the_mean() -> None:
    """Several positions an example, of which the second counts one alone; 4,000 draws are right to a few percent."""
    readout, dense = near(12, positions=3)
    coordinates = list(readout.coordinates(dense, samples=4000, seed=0))
    assert len(coordinates) == 4000
    halved = torch.stack(coordinates).square().sum(0) / 2
    torch.testing.assert_close(halved, readout.divergence(dense), rtol=0.1, atol=0)
    again = next(iter(readout.coordinates(dense, samples=4000, seed=0)))
    assert torch.equal(again, coordinates[0])
    assert not torch.equal(next(iter(readout.coordinates(dense, samples=4000, seed=1))), again)


def test_coordinates_have_gradients_where_the_divergence_has_none() -> None:
    """At the dense model: d u / dz of two classes is sqrt(p_0 p_1) (-1, 1)."""
    leaf = LOGITS[:, :1].clone().requires_grad_()
    readout, dense = Readout(leaf, TARGETS[:, :1]), Readout(LOGITS[:, :1], TARGETS[:, :1])
    (gradient,) = torch.autograd.grad(next(iter(readout.coordinates(dense, 1, 0))).sum(), leaf)
    spread = LOGITS[:, :1].softmax(-1).prod(-1, keepdim=True).sqrt()
    torch.testing.assert_close(gradient, spread * torch.tensor([-1.0, 1.0]))
    (flat,) = torch.autograd.grad(readout.divergence(dense).sum(), leaf)
    torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-7)
