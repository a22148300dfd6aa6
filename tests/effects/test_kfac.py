"""Factors where projections are no linear layers of their own, against gradients of one pass taken by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.effects.activations import moments
from hf_mabprune.effects.kfac import READ, SAMPLES, kfac_factors
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from tests.effects.by_hand import flowing, sent
from tests.problems import problem

SITES = {
    "gpt2": ["h.0.mlp.c_proj", "h.1.attn.c_proj"],
    "mixtral": ["layers.0.mlp.experts.1", "layers.1.mlp.experts.2", "layers.0.self_attn.o_proj"],
    "t5": ["encoder.block.1.layer.0.SelfAttention.o", "decoder.block.0.layer.1.EncDecAttention.o"],
    "vit": ["layers.0.mlp.fc2", "layers.1.attention.o_proj"],
}


def slopes(model: PreTrainedModel, task: Task, batch: Batch, path: str, seed: int) -> torch.Tensor:
    """[coordinates, N, D]: those of the outputs' coordinates by what a module gives at each position."""
    seen: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, given: tuple, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = model.base_model.get_submodule(path).register_forward_hook(hook)
    readout = task.readout(model, batch)
    handle.remove()
    coordinates = readout.coordinates(replace(readout, outputs=readout.outputs.detach()), SAMPLES, seed)
    found = [torch.autograd.grad(u.sum(), seen[-1], retain_graph=True)[0] for u in coordinates]
    return torch.stack([slope.reshape(-1, slope.shape[-1]) for slope in found]).double()


@pytest.mark.parametrize("model_type", sorted(SITES))
def test_factors_are_those_of_gradients_by_hand(model_type: str) -> None:
    model, task, batches, _ = problem(model_type)
    sites = [site for site in architecture_of(model).sites(model) if site.kind != "expert"]
    factors, passes = kfac_factors(model, task, batches, sites, seed=3)
    assert passes == (1 if model_type == "vit" else SAMPLES)
    for name in SITES[model_type]:
        h, g = [], []
        for number, batch in enumerate(batches):
            if ".experts." in name:
                layer, expert = int(name.split(".")[1]), int(name.split(".")[-1])
                rows = torch.as_tensor(sent(model, task, batch, layer, expert))
                counted = (rows != 0).any(1)  # it never saw the others
                slope = slopes(model, task, batch, f"layers.{layer}.mlp.experts", 3 + number)
            else:
                rows = flowing(model, task, batch, name)[0].double()
                flag = "decoder_attention_mask" if name.startswith("decoder") else "attention_mask"
                counted = batch.get(flag, torch.ones(rows.shape[:2])).flatten() == 1
                rows, slope = rows.flatten(0, 1), slopes(model, task, batch, name, 3 + number)
            h.append(rows[counted])
            g.append(slope[:, counted])
        hidden, slope = torch.cat(h).numpy(), torch.cat(g, 1).numpy()
        examples, found = sum(len(batch["labels"]) for batch in batches), factors[name]
        outer = np.einsum("cnd,cne->de", slope, slope) / examples
        np.testing.assert_allclose(found.outputs, outer, rtol=1e-3, atol=1e-4 * np.abs(outer).max(), err_msg=name)
        squares = np.square(slope).sum((0, 2))
        assert float(found.outputs.trace()) == pytest.approx(squares.sum() / examples, rel=1e-4)
        weights = READ * squares / squares.sum() + (1 - READ) / len(hidden)
        second = (hidden.T * weights) @ hidden
        assert found.inputs.count == len(hidden)
        np.testing.assert_allclose(found.inputs.mean, weights @ hidden, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.inputs.second, second, rtol=1e-3, atol=1e-4 * np.abs(second).max())
        # tr(G) A, without the even share, is the sum over positions of |g|^2 h h' / N: nothing is lost by factoring.
        read = found.inputs.second.numpy() - (1 - READ) * hidden.T @ hidden / len(hidden)
        exact = (hidden.T * squares) @ hidden / examples
        product = float(found.outputs.trace()) * read / READ
        np.testing.assert_allclose(product, exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_model_in_half_precision_has_nearly_the_same_factors_in_float32(
    dtype: torch.dtype, tolerance: float
) -> None:
    model, task, batches, _ = problem("llama")
    sites = architecture_of(model).sites(model)
    half = copy.deepcopy(model).to(dtype)
    expected, found = (kfac_factors(each, task, batches, sites)[0] for each in (model, half))
    for name, factors in found.items():
        for ours, exact in (
            (factors.inputs.second, expected[name].inputs.second),
            (factors.outputs, expected[name].outputs),
        ):
            assert ours.dtype == torch.float32
            assert float((ours - exact).norm()) < tolerance * float(exact.norm()), name


def test_every_run_of_a_layer_counts() -> None:
    """A layer that runs twice has twice the positions, and the factors of both runs."""
    model, task, batches, _ = problem("albert")
    sites = architecture_of(model).sites(model)
    factors, _ = kfac_factors(model, task, batches, sites)
    positions = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert len(sites) == 2 and model.config.num_hidden_layers == 2
    for site in sites:
        found = factors[site.name]
        assert found.inputs.count == 2 * positions
        values = moments(model, task, batches, [site])[site.name]
        assert values.count == 2 * positions
