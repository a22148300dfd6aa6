"""Refits of experts against numpy: of one by itself, and of all that stay behind a router once others have gone."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.compensation import DenseReference, compensate, make_compensation
from hf_mabprune.effects.activations import moments
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from tests.compensation.test_least_squares import keys_of, ridge
from tests.effects.by_hand import sent
from tests.problems import problem, unasked
from tests.seeds import moved

EXPERTS = "layers.1.mlp.experts"
DAMPING = 0.05


def method(bottom_up: bool = False):
    settings = {"name": "least_squares", "damping": DAMPING, "guard": False, "bottom_up": bottom_up}
    return make_compensation(settings)


@torch.no_grad()
def distance(task: Task, model: PreTrainedModel, other: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """The squared distance of the outputs of two models, summed over batches."""
    pairs = [[task.readout(each, batch).outputs for each in (model, other)] for batch in batches]
    return sum(float((first - second).square().sum()) for first, second in pairs)


@pytest.mark.parametrize("bottom_up", [False, True])
def test_weights_of_an_expert_are_those_of_a_regression_on_what_its_router_sends(bottom_up: bool) -> None:
    model, task, batches, _ = problem("mixtral")
    units = np.array([1, 2, 3, 8, 13, 21, 34, 47])
    keep = {f"{EXPERTS}.{expert}": (units + expert) % 48 for expert in range(4)}
    keep = {name: np.sort(own) for name, own in keep.items()}
    reference, small = DenseReference.on(model, task, batches), cut(model, keep, "per_layer")
    before = small.base_model.layers[1].mlp.experts.down_proj.detach().double().numpy().copy()
    figures = compensate(method(bottom_up), reference, small, keep)

    after = small.base_model.layers[1].mlp.experts.down_proj.detach().double().numpy()
    assert [site.site for site in figures.sites] == list(keep) and all(site.refitted for site in figures.sites)
    for expert, own in enumerate(keep.values()):
        hidden = np.concatenate([sent(model, task, batch, 1, expert) for batch in reference.batches])
        y = hidden @ model.base_model.layers[1].mlp.experts.down_proj[expert].detach().double().numpy().T
        expected = ridge(hidden[:, own], y, before[expert], DAMPING)
        np.testing.assert_allclose(after[expert], expected, rtol=0, atol=2e-4)
        assert np.abs(after[expert] - before[expert]).max() > 1e-2


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize("widths", [48, 24])
def test_experts_that_stay_are_refitted_together(widths: int, bottom_up: bool) -> None:
    model, task, batches, _ = problem("mixtral")
    stay, rng = [0, 2, 3], np.random.default_rng(moved(0))
    keep = {"layers.1.mlp.gate": np.array(stay)}
    if widths < 48:
        keep |= {f"{EXPERTS}.{expert}": np.sort(rng.choice(48, widths, replace=False)) for expert in range(4)}
    reference = DenseReference(model, task, batches, batches, keys_of(batches))  # judged by what it is fitted to
    small, plain = (cut(model, keep, "per_layer") for _ in range(2))
    figures = compensate(method(bottom_up), reference, small, keep)

    columns = {expert: keep.get(f"{EXPERTS}.{expert}", np.arange(48)) for expert in stay}
    x = np.concatenate([
        np.concatenate([sent(model, task, batch, 1, expert, stay)[:, columns[expert]] for expert in stay], axis=1)
        for batch in batches
    ])  # fmt: skip
    weights = model.base_model.layers[1].mlp.experts.down_proj.detach().double().numpy()
    whole = [sum(sent(model, task, batch, 1, expert) @ weights[expert].T for expert in range(4)) for batch in batches]
    y = np.concatenate(whole)
    start = np.concatenate([weights[expert][:, columns[expert]] for expert in stay], axis=1)
    expected = ridge(x, y, start, DAMPING)
    found = torch.cat(list(small.base_model.layers[1].mlp.experts.down_proj.detach()), 1).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)

    (site,) = figures.sites
    assert (site.site, site.kind, site.refitted) == ("layers.1.mlp.gate", "expert", True)
    variance = np.square(y - y.mean(0)).sum()
    for weight, error in ((start, site.error_before), (expected, site.error_after)):
        assert error == pytest.approx(np.square(x @ weight.T - y).sum() / variance, rel=1e-2)
    assert site.error_after < site.error_before
    distances = [distance(task, model, other, batches) for other in (small, plain)]
    assert distances[0] < distances[1]


@pytest.mark.parametrize("bottom_up", [False, True])
def test_a_refit_of_experts_makes_up_for_biases_that_go(bottom_up: bool) -> None:
    """Biases of experts that go, so large that they are nearly all of what is missed."""
    model, task, batches, _ = problem("gpt_oss")
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.mlp.experts.down_proj_bias.mul_(10)
    keep = {"layers.1.mlp.router": np.array([0, 2, 3])}
    reference = DenseReference(model, task, batches, batches, keys_of(batches))
    small, plain = (cut(model, keep, "per_layer") for _ in range(2))
    figures = compensate(method(bottom_up), reference, small, keep)

    distances = [distance(task, model, other, batches) for other in (small, plain)]
    assert figures.sites[0].refitted and figures.sites[0].error_after < figures.sites[0].error_before
    assert distances[0] < distances[1]


def test_experts_that_no_position_goes_to_are_left_as_they_are() -> None:
    model, task, batches = unasked()
    keep = {f"{EXPERTS}.{expert}": np.arange(24) for expert in range(32)}
    small = cut(model, keep, "per_layer")
    before = small.base_model.layers[1].mlp.experts.down_proj.detach().clone()
    figures = compensate(method(), DenseReference.on(model, task, batches), small, keep)
    after = small.base_model.layers[1].mlp.experts.down_proj
    assert after.isfinite().all()
    assert all(np.isfinite([site.error_before, site.error_after]).all() for site in figures.sites)
    sites = [site for site in architecture_of(model).sites(model) if site.name in keep]
    found = moments(model, task, DenseReference.on(model, task, batches).batches, sites)
    idle = [site.expert for site in sites if not found[site.name].second.any()]
    assert idle and torch.equal(after[idle], before[idle])


def test_a_refit_of_too_many_columns_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_mabprune.compensation.site_refit.MOST_COLUMNS", 100)
    model, task, batches, _ = problem("mixtral")
    keep = {"layers.1.mlp.gate": np.array([0, 1, 3])}
    figures = compensate(method(), DenseReference.on(model, task, batches), cut(model, keep, "per_layer"), keep)
    assert [site.reason for site in figures.sites] == ["144 columns are too many to be refitted at once"]
