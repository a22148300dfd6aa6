"""Moments of projection inputs against tensors taken by hand."""

import numpy as np
import pytest
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.effects.activations import BLOCKS, WIDE, add_products, moments
from hf_mabprune.effects.kfac import kfac_factors
from hf_mabprune.effects.masking import keep_masks, masked
from tests.effects.by_hand import flowing, sent
from tests.problems import problem, some_context


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "vit"])
def test_moments_are_those_of_the_positions_that_are_not_padding(model_type: str) -> None:
    model, task, batches, _ = problem(model_type)
    sites = architecture_of(model).sites(model)
    found = moments(model, task, batches, sites)
    site = sites[-1]
    rows = []
    projection = model.base_model.get_submodule(site.name)
    for batch in batches:
        seen: list[torch.Tensor] = []
        handle = projection.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[0]))
        with torch.no_grad():
            task.readout(model, batch)
        handle.remove()
        attention = batch.get("attention_mask", torch.ones(seen[0].shape[:2]))
        rows += [seen[0][example][attention[example] == 1] for example in range(len(attention))]
    hidden = torch.cat(rows).double().numpy()
    assert set(found) == {site.name for site in sites}
    assert found[site.name].count == len(hidden)
    np.testing.assert_allclose(found[site.name].mean, hidden.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[site.name].covariance(), np.cov(hidden.T, bias=True), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[site.name].variance(), hidden.var(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("columns", [0, 3, WIDE - 1, WIDE, WIDE + 1, WIDE + BLOCKS + 1])
def test_symmetric_products_are_whole(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(50, columns, generator=generator), torch.rand(50, 1, generator=generator)
    once = add_products(None, rows * weights, rows)
    right = (rows * weights).double().T @ rows.double()
    torch.testing.assert_close(once.double(), right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(add_products(once, rows * weights, rows).double(), 2 * right, rtol=1e-4, atol=2e-5)


def test_what_is_masked_is_seen_as_zero() -> None:
    model, task, batches, arms = problem("bert")
    kept = some_context(arms)
    sites = architecture_of(model).sites(model)
    with masked(model, masks=keep_masks(model, arms.kept_units(kept))):
        found = moments(model, task, batches, sites)
    arm = int(np.flatnonzero(~kept & (arms.kind == "neuron"))[0])
    assert float(found[str(arms.site[arm])].second[int(arms.start[arm])].abs().max()) == 0


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_batch_is_left_out(broken: int) -> None:
    model, task, batches, _ = problem("bert")
    sites = architecture_of(model).sites(model)
    others = [batch for number, batch in enumerate(batches) if number != broken]
    expected, expected_kfac = moments(model, task, others, sites), kfac_factors(model, task, others, sites)[0]
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight[19] = float("nan")
    batches[broken]["input_ids"][0, 1] = 19
    found, kfac = moments(model, task, batches, sites), kfac_factors(model, task, batches, sites)[0]
    for path in expected:
        torch.testing.assert_close(found[path].second, expected[path].second)
        torch.testing.assert_close(kfac[path].outputs, expected_kfac[path].outputs)


def test_moments_of_an_expert_are_those_of_what_its_router_sends() -> None:
    model, task, batches, _ = problem("mixtral")
    sites = [site for site in architecture_of(model).sites(model) if site.kind == "neuron"]
    found = moments(model, task, batches, sites)
    assert len(found) == 8
    for layer, expert in ((0, 2), (1, 0)):
        hidden = np.concatenate([sent(model, task, batch, layer, expert) for batch in batches])
        ours = found[f"layers.{layer}.mlp.experts.{expert}"]
        idle = (hidden == 0).all(1)
        assert ours.count == len(hidden) == 3 * 4 * 7 and 0 < idle.sum() < len(hidden)
        np.testing.assert_allclose(ours.mean, hidden.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours.second, hidden.T @ hidden / len(hidden), rtol=1e-3, atol=1e-6)


def test_moments_of_both_stacks_leave_their_own_padding_out() -> None:
    model, task, batches, _ = problem("t5")
    sites = architecture_of(model).sites(model)
    found = moments(model, task, batches, sites)
    for site in (sites[1], sites[3], sites[-2]):
        flag = "decoder_attention_mask" if site.name.startswith("decoder") else "attention_mask"
        rows = [flowing(model, task, batch, site.name)[0][batch[flag] == 1] for batch in batches]
        hidden = torch.cat(rows).double().numpy()
        assert found[site.name].count == len(hidden) == (3 * 18 if flag.startswith("decoder") else 3 * 26), site.name
        np.testing.assert_allclose(found[site.name].mean, hidden.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[site.name].second, hidden.T @ hidden / len(hidden), rtol=1e-4, atol=1e-6)
