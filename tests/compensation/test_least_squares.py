"""Least squares against numpy on raw activations, and where it must be exact."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.projections import cuts
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.compensation import Compensation, DenseReference, compensate, make_compensation
from hf_mabprune.compensation.least_squares import LeastSquares
from hf_mabprune.compensation.refit import LOWER
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from tests.problems import problem
from tests.seeds import moved
from tests.tiny_models import keep_of, outputs_of


def keys_of(batches: list[Batch]) -> list[tuple[str, int, int]]:
    """Names of batches that are held out as they are, in one part each."""
    return [("calibration", number, 0) for number in range(len(batches))]


def weights_at(model: PreTrainedModel, path: str) -> np.ndarray:
    """[outputs, inputs] of a Linear or a Conv1D."""
    module = model.base_model.get_submodule(path)
    weight = module.weight.detach().double().numpy()
    return weight.T.copy() if isinstance(module, Conv1D) else weight.copy()


def activations(
    model: PreTrainedModel, task: Task, batches: list[Batch], path: str, flag: str = "attention_mask"
) -> np.ndarray:
    """[N, columns], what flows into a projection, padding left out; by a hook of its own."""
    rows = []
    for batch in batches:
        seen: list[torch.Tensor] = []
        projection = model.base_model.get_submodule(path)
        handle = projection.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[0]))
        with torch.no_grad():
            task.readout(model, batch)
        handle.remove()
        rows.append(seen[0][batch[flag].bool()])
    return torch.cat(rows).double().numpy()


def ridge(x: np.ndarray, y: np.ndarray, start: np.ndarray, damping: float) -> np.ndarray:
    """argmin |x W' - y|^2 + N lambda |W - start|^2 by an augmented system; [D, S]."""
    strength = np.sqrt(len(x) * damping * np.mean(x**2))
    rows = np.concatenate([x, strength * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([y, strength * start.T]), rcond=None)[0].T


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize(
    ("model_type", "layout"),
    [
        ("bert", "per_layer"),
        ("llama", "uniform"),
        ("mistral", "uniform"),
        ("gemma3_text", "uniform"),
        ("gpt2", "per_layer"),
    ],
)
@pytest.mark.parametrize("kind", ["neuron", "head"])
def test_weights_are_those_of_a_regression_on_raw_activations(
    kind: str, model_type: str, layout: str, bottom_up: bool
) -> None:
    model, task, batches, _ = problem(model_type)
    sites = [site for site in architecture_of(model).sites(model) if site.kind == kind]
    keep = {site.name: np.array([0, 1] if kind == "head" else [2, 3, 7, 11, 40]) for site in sites}
    if model_type in ("bert", "gpt2"):
        keep |= keep_of(model, {0: range(9)})  # sizes differ
    reference, small = DenseReference.on(model, task, batches), cut(model, keep, layout)  # type: ignore[arg-type]
    weight = projection_of(small, sites[-1]).weight.detach().double().numpy()
    method = make_compensation({"name": "least_squares", "damping": 0.05, "guard": False, "bottom_up": bottom_up})
    compensate(method, reference, small, keep)

    site, whole = sites[-1], projection_of(model, sites[-1])
    fitting = list(reference.batches)
    hidden = activations(model, task, fitting, site.name)
    y = hidden @ whole.weight.detach().double().numpy().T
    y += 0 if whole.bias is None else whole.bias.detach().double().numpy()
    columns = (keep[site.name][:, None] * site.unit_size + np.arange(site.unit_size)).ravel()
    goes_up = bottom_up and not site.spec.norm
    x = activations(small, task, fitting, site.name) if goes_up else hidden[:, columns]
    if goes_up:  # what the output is added to differs by the errors of the layers below
        before, now = (activations(each, task, fitting, site.prefix + site.spec.stream) for each in (model, small))
        y += before - now
    found = projection_of(small, site)
    if found.bias is None:
        expected = ridge(x, y, weight, 0.05)
        assert model_type in ("mistral", "gemma3_text")
    else:
        expected = ridge(x - x.mean(0), y - y.mean(0), weight, 0.05)
        np.testing.assert_allclose(found.bias.detach(), y.mean(0) - expected @ x.mean(0), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.weight.detach(), expected, rtol=0, atol=2e-4)


def twin(model: PreTrainedModel, kind: str) -> None:
    """Makes the last two units (for heads: groups of units) of every site give the same."""
    with torch.no_grad():
        for site in architecture_of(model).sites(model):
            if site.kind == kind:
                last = np.arange(site.units - site.group, site.units)
                pairs = zip(*(cuts(model.base_model, site, units) for units in (last, last - site.group)), strict=True)
                for own, other in pairs:
                    if own.path != f"{site.name}.weight":
                        tensor = part_at(model.base_model, own.path)
                        source = tensor.index_select(own.dim, torch.as_tensor(other.index))
                        tensor.index_copy_(own.dim, torch.as_tensor(own.index), source)


@pytest.mark.parametrize(
    ("model_type", "kind", "path"),
    [
        ("bert", "neuron", "encoder.layer.1.intermediate.dense"),
        ("llama", "neuron", "layers.1.mlp.up_proj"),
        ("qwen2", "head", "layers.1.self_attn.k_proj"),
        ("gpt2", "head", "h.1.attn.c_attn"),
        ("t5", "head", "decoder.block.1.layer.1.EncDecAttention.q"),
    ],
)
def test_rows_that_make_columns_are_those_of_a_regression_on_raw_activations(
    model_type: str, kind: str, path: str
) -> None:
    model, task, batches, _ = problem(model_type)
    sites = [site for site in architecture_of(model).sites(model) if site.kind == kind]
    keep = {site.name: np.arange(site.units - site.group) for site in sites}
    reference, small = DenseReference.on(model, task, batches), cut(model, keep, "per_layer")
    before = weights_at(small, path)
    options = {"damping": 0.05, "guard": False, "bottom_up": True, "both_sides": True}
    compensate(make_compensation({"name": "least_squares", **options}), reference, small, keep)

    flag = "decoder_attention_mask" if model_type == "t5" else "attention_mask"
    states, x = (activations(each, task, list(reference.batches), path, flag) for each in (model, small))
    site = next(site for site in sites if path.startswith(site.prefix + site.spec.rows[0].path.rpartition(".")[0]))
    stay = next(each.index for each in cuts(model.base_model, site, keep[site.name]) if each.path == f"{path}.weight")
    whole, bias = weights_at(model, path), getattr(model.base_model.get_submodule(path), "bias", None)
    y = (states @ whole.T)[:, stay]
    expected = ridge(x, y, before, 0.05) if bias is None else ridge(x - x.mean(0), y - y.mean(0), before, 0.05)
    np.testing.assert_allclose(weights_at(small, path), expected, rtol=0, atol=1e-4)
    assert np.abs(expected - before).max() > 1e-4


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize("kind", ["neuron", "head"])
@pytest.mark.parametrize("model_type", ["bert", "llama", "qwen2", "gpt2"])
def test_one_of_two_equal_units_goes_at_no_cost(model_type: str, kind: str, bottom_up: bool) -> None:
    model, task, batches, _ = problem(model_type)
    twin(model, kind)
    sites = [site for site in architecture_of(model).sites(model) if site.kind == kind]
    keep = {site.name: np.arange(site.units - site.group) for site in sites}
    reference, small = DenseReference(model, task, batches, batches, keys_of(batches)), cut(model, keep, "per_layer")
    method = make_compensation({"name": "least_squares", "damping": 1e-9, "guard": False, "bottom_up": bottom_up})
    figures = compensate(method, reference, small, keep)

    assert all(site.refitted for site in figures.sites)
    assert max(site.error_after for site in figures.sites) < 1e-5, figures.sites
    assert figures.kl_after < 1e-4 * figures.kl_before


@pytest.mark.parametrize("damping", [1e-9, 1e-3, 1.0])
def test_rank_deficient_moments_leave_what_they_do_not_determine(damping: float) -> None:
    rng = np.random.default_rng(moved(0))
    x = rng.normal(size=(40, 6))
    x[:, 3], x[:, 4] = x[:, 2], 0.0  # a twin, and an input that never fires
    y = rng.normal(size=(40, 5))
    weight = rng.normal(size=(5, 6))
    moments = (torch.as_tensor(array) for array in (weight, x.T @ x / 40, y.T @ x / 40))
    found = LeastSquares(damping=damping).fit(*moments, unit_size=1).numpy()

    np.testing.assert_allclose(found, ridge(x, y, weight, damping), atol=1e-4)
    np.testing.assert_array_equal(found[:, 4], weight[:, 4])
    np.testing.assert_allclose(found[:, 2] - found[:, 3], weight[:, 2] - weight[:, 3], atol=1e-4)


def test_moments_that_rounding_made_indefinite_are_damped_until_they_are_not() -> None:
    xx = torch.diag(torch.tensor([1.0, -1e-4, 0.5], dtype=torch.float64))
    weight = torch.ones(2, 3, dtype=torch.float64)
    found = LeastSquares(damping=1e-6).fit(weight, xx, weight @ xx, unit_size=1)
    assert torch.allclose(found, weight, atol=1e-6)


class Worse(Compensation):
    """Turns every sign around."""

    def fit(self, weight: torch.Tensor, xx: torch.Tensor, yx: torch.Tensor, unit_size: int) -> torch.Tensor:
        return -weight


def test_the_guard_leaves_alone_what_gets_worse() -> None:
    model, task, batches, _ = problem("bert")
    keep = keep_of(model, {0: range(44), 1: range(44)})
    reference, small = DenseReference.on(model, task, batches), cut(model, keep, "per_layer")
    before = outputs_of(small)
    figures = compensate(Worse(), reference, small, keep)

    assert [site.reason for site in figures.sites] == [LOWER] * 2
    assert torch.equal(outputs_of(small), before)
    assert figures.kl_after == figures.kl_before
    assert compensate(Worse(guard=False), reference, small, keep).kl_after > figures.kl_before


def test_the_held_out_pass_ends_where_the_verdict_is_sure() -> None:
    model, task, batches, _ = problem("bert")
    keep = keep_of(model, {0: range(2), 1: range(2)})
    reference = DenseReference(model, task, batches[:1], batches, keys_of(batches))
    small = cut(model, keep, "per_layer")
    whole = reference.divergence(small)
    parts = [
        DenseReference(model, task, batches[:1], [batch], keys_of([batch])).divergence(small) for batch in batches
    ]
    assert whole == pytest.approx(np.mean(parts))
    assert reference.divergence(small, limit=whole) == whole
    spent = reference.cost.forward_tokens
    assert reference.divergence(small, limit=parts[0] / 4) == float("inf")
    assert reference.cost.forward_tokens == spent + batches[0]["input_ids"].numel(), "one batch of three"
