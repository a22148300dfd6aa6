"""Readouts of language models with a large vocabulary say what readouts of their logits say."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from hf_mabprune.tasks import vocabulary
from hf_mabprune.tasks.head_readout import HeadReadout
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.vocabulary import Head, draw, expected
from tests.tasks.tiny_tasks import WORDS, make_tokenizer, task_of
from tests.tiny_models import tiny_model

TARGETS = torch.tensor([[3, -100, 0, 40], [-100, -100, -100, -100], [7, 7, 50, 2]])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of tokens, the last one smaller, and several parts of positions."""
    monkeypatch.setitem(vocabulary.ROWS, "cpu", 3)
    monkeypatch.setitem(vocabulary.TOKENS, "cpu", 16)


def _made(seed: int, bias: bool = True, scale: float = 1.0) -> tuple[HeadReadout, Readout]:
    """A readout by its head, and the same by its logits, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(51, 6, generator=torch.Generator().manual_seed(1))
    head = Head(weight, torch.linspace(-1, 1, 51) if bias else None)
    hidden = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))
    hidden += scale * torch.randn(3, 4, 6, generator=generator)
    logits = torch.nn.functional.linear(hidden.double(), weight.double(), None if not bias else head.bias.double())
    return HeadReadout(hidden, TARGETS, head), Readout(logits, TARGETS)


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_said_is_that_of_the_logits(bias: bool) -> None:
    found, plain = _made(3, bias)
    torch.testing.assert_close(found.losses(), plain.losses(), rtol=1e-5, atol=1e-6)
    assert found.correct().tolist() == plain.correct().tolist()
    assert [part.tolist() for part in found.predictions()] == [part.tolist() for part in plain.predictions()]
    assert found.scores().positions.tolist() == [3, 0, 4]


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
def test_divergences_of_all_sizes_keep_their_digits(scale: float) -> None:
    dense, plain_dense = _made(3, scale=0.0)
    found, plain = _made(4, scale=scale)
    plain = Readout((found.outputs.double() - dense.outputs.double()) @ found.head.weight.double().T, TARGETS)
    plain = replace(plain, outputs=plain.outputs + plain_dense.outputs)
    torch.testing.assert_close(found.divergence(dense), plain.divergence(plain_dense), rtol=2e-4, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
def test_divergences_from_a_summary_are_the_same(scale: float, bias: bool) -> None:
    (dense, _), (found, _) = _made(3, bias, scale=0.0), _made(4, bias, scale)
    summary = dense.summary()
    assert summary.shape == (7, 7)
    whole = found.divergence(dense)
    torch.testing.assert_close(found.divergence(dense, summary), whole, rtol=1e-5, atol=2e-6 if scale > 0.1 else 1e-15)
    hidden, others = (each.outputs[each.counted()] for each in (found, dense))
    alone = vocabulary.diverged(found.head, hidden, others, summary)
    torch.testing.assert_close(alone, vocabulary.compared(found.head, hidden, others).divergence, rtol=1e-5, atol=5e-6)


def test_a_broken_state_is_found_with_a_summary_too() -> None:
    (dense, _), (found, _) = _made(3), _made(4)
    found.outputs[2, 1] = torch.nan
    assert found.divergence(dense, dense.summary()).isfinite().tolist() == [True, True, False]


def test_a_divergence_from_itself_is_nothing_and_one_of_arms_is_that_of_each() -> None:
    (dense, _), (first, _), (second, _) = _made(3), _made(4), _made(5)
    assert dense.divergence(dense).tolist() == [0, 0, 0]
    together = replace(first, outputs=torch.stack([first.outputs, second.outputs])).divergence(dense)
    torch.testing.assert_close(together, torch.stack([first.divergence(dense), second.divergence(dense)]))


@pytest.mark.parametrize("quantity", ["losses", "divergence", "coordinates"])
def test_gradients_are_those_of_the_logits(quantity: str) -> None:
    (dense, plain_dense), (found, plain) = _made(3), _made(4)
    leaf = found.outputs.clone().requires_grad_()
    weight = found.head.weight.clone().requires_grad_(quantity != "coordinates")
    bias = found.head.bias.clone().requires_grad_(quantity != "coordinates")
    found = replace(found, outputs=leaf, head=Head(weight, bias))
    twin, twin_weight, twin_bias = (part.detach().double().requires_grad_() for part in (leaf, weight, bias))
    plain = Readout(twin @ twin_weight.T + twin_bias, TARGETS)
    if quantity == "losses":
        values, expected = found.losses(), plain.losses()
    elif quantity == "divergence":
        values, expected = found.divergence(dense), plain.divergence(plain_dense)
    else:  # labels are drawn: one that is right for every draw is the mean over many
        values = torch.stack(list(found.coordinates(dense, 4000, 0))).square().sum(0)
        change = (plain.outputs - plain_dense.outputs).detach()
        p = plain_dense.outputs.softmax(-1)
        variance = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
        counted = TARGETS != -100
        means = (variance * counted).sum(1) / counted.sum(1).clamp(min=1)
        # Independent positions: products between them vanish over many draws.
        assert values.tolist() == pytest.approx(means.tolist(), rel=0.15)
        return
    values.sum().backward()
    expected.sum().backward()
    for mine, other in ((leaf, twin), (weight, twin_weight), (bias, twin_bias)):
        torch.testing.assert_close(mine.grad, other.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-2, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_gradients_of_a_frozen_head_are_those_of_the_logits(
    scale: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "KEPT", 8 * 51 * rows)
    (dense, plain_dense), (found, _) = _made(3), _made(4, scale=scale)
    leaf, twin = found.outputs.clone().requires_grad_(), found.outputs.double().requires_grad_()
    values = replace(found, outputs=leaf).divergence(dense)
    logits = twin @ found.head.weight.double().T + found.head.bias.double()
    expected = Readout(logits, TARGETS).divergence(plain_dense)
    torch.testing.assert_close(values, expected, rtol=2e-4, atol=1e-9)
    slopes = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    (values * slopes).sum().backward()
    (expected * slopes).sum().backward()
    torch.testing.assert_close(leaf.grad, twin.grad.float(), rtol=1e-3, atol=1e-6)


def test_products_in_half_precision_keep_the_digits_of_small_changes() -> None:
    (dense, _), (found, _) = _made(3), _made(4, scale=1e-2)
    values, slopes = [], []
    for half in (False, True):
        leaf = found.outputs.clone().requires_grad_()
        values.append(replace(found, outputs=leaf, head=replace(found.head, half=half)).divergence(dense))
        values[-1].sum().backward()
        slopes.append(leaf.grad)
    torch.testing.assert_close(values[1], values[0], rtol=0.05, atol=1e-9)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0.05, atol=0.02 * float(slopes[0].abs().max()))
    assert not torch.equal(slopes[1], slopes[0])


def test_coordinates_are_linear_in_the_hidden_states() -> None:
    dense, _ = _made(3)
    moved, _ = _made(4)
    leaf = moved.outputs.clone().requires_grad_()
    first, second = replace(moved, outputs=leaf).coordinates(dense, 2, 0)
    assert first.tolist() != second.tolist() and first[1].item() == 0
    (slope,) = torch.autograd.grad(first.sum(), leaf)
    assert float((slope * (moved.outputs - dense.outputs)).sum()) == pytest.approx(first.sum().item(), rel=1e-4)


def test_labels_are_drawn_by_their_probability() -> None:
    dense, plain = _made(3)
    hidden = dense.outputs[:1, 2].repeat(20_000, 1)
    tokens = draw(dense.head, hidden, expected(dense.head, hidden).masses, torch.Generator().manual_seed(0))
    shares = torch.bincount(tokens, minlength=51) / len(tokens)
    torch.testing.assert_close(shares, plain.outputs[0, 2].softmax(-1).float(), rtol=0, atol=0.02)


def test_a_broken_state_has_no_answer_and_spoils_no_other() -> None:
    found, _ = _made(3)
    broken = found.outputs.clone()
    broken[0, 0] = torch.nan
    readout = replace(found, outputs=broken)
    assert readout.losses().isnan().tolist() == readout.correct().isnan().tolist() == [True, False, False]
    assert readout.predictions()[0][0] == -1
    assert readout.divergence(found).isnan().tolist() == [True, False, False]


def test_a_temperature_divides_the_logits() -> None:
    (dense, plain_dense), (found, plain) = _made(3), _made(4)
    softened = found.softened(2.0).divergence(dense.softened(2.0))
    torch.testing.assert_close(softened, plain.softened(2.0).divergence(plain_dense.softened(2.0)), rtol=1e-4, atol=0)


def test_a_model_that_adds_to_what_its_head_gives_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As BART and its like, whose logits have a bias that is no part of the head."""
    monkeypatch.setattr(vocabulary, "LARGE_VOCABULARY", 8)
    model = tiny_model("bart", "AutoModelForSeq2SeqLM", vocab_size=len(WORDS))
    model.final_logits_bias = torch.linspace(-1, 1, len(WORDS)).unsqueeze(0)
    task = task_of(model, make_tokenizer("end"))
    batch = task.collate(list(task.encode(Dataset.from_dict({"source": ["a b"], "target": ["b a"]}))))
    with torch.no_grad():
        readout, whole = task.readout(model, batch), model(**task.inputs(batch)).logits
    torch.testing.assert_close(readout.outputs, whole)
