"""Rivals meet the size they are asked for, say what a model works with, and do by small means what they claim."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.effects.activations import moments
from hf_mabprune.effects.masking import masked
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from research.benchmarks.rivals import RIVALS, Chosen, applied, non_embedding_parameters, removed_parameters
from research.benchmarks.rivals.base import blocks, perplexity, split
from research.benchmarks.rivals.two_ssp import two_ssp
from tests.seeds import moved
from tests.tasks.tiny_tasks import make_tokenizer, task_of
from tests.tiny_models import outputs_of, tiny_model

FRACTION = 0.4
TYPES = [("llama", {}), ("gemma3_text", {"num_key_value_heads": 1})]
rivals = pytest.mark.parametrize("name", RIVALS)
models = pytest.mark.parametrize(("model_type", "changes"), TYPES, ids=str)


def problem(model_type: str, changes: dict[str, Any]) -> tuple[PreTrainedModel, Task, list[Batch]]:
    model = tiny_model(model_type, "AutoModelForCausalLM", num_hidden_layers=4, **changes)
    generator = torch.Generator().manual_seed(moved(0))
    ids = [torch.randint(3, 16, (4, 32), generator=generator) for _ in range(3)]
    return model, task_of(model, make_tokenizer("plain")), [Batch(input_ids=each, labels=each) for each in ids]


@rivals
@models
def test_what_it_chooses_has_the_size_that_is_asked_for(name: str, model_type: str, changes: dict[str, Any]) -> None:
    model, task, batches = problem(model_type, changes)
    before = {path: weight.clone() for path, weight in model.state_dict().items()}
    chosen = RIVALS[name](model, task, batches, FRACTION)
    largest = max(projection_of(model, site).weight[:, : site.unit_size].numel() for site in sites_of(model)) * 8
    wanted = FRACTION * non_embedding_parameters(model)
    assert abs(removed_parameters(model, chosen.keep) - wanted) < largest
    assert all(torch.equal(model.get_parameter(path), weight) for path, weight in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert chosen.cost.forward_tokens >= sum(batch.tokens for batch in batches)


@rivals
@models
def test_a_model_works_as_it_says_while_the_context_is_open(
    name: str, model_type: str, changes: dict[str, Any]
) -> None:
    model, task, batches = problem(model_type, changes)
    dense = outputs_of(model)
    chosen = RIVALS[name](model, task, batches, FRACTION)
    with applied(model, chosen, compensated=False):
        masks_alone = outputs_of(model)
    with applied(model, chosen):
        compensated = outputs_of(model)
    assert torch.equal(outputs_of(model), dense)
    assert not torch.allclose(masks_alone, dense)
    assert torch.equal(masks_alone, compensated) == (not chosen.weights)


def sites_of(model: PreTrainedModel) -> list[Site]:
    return architecture_of(model).sites(model)


def test_parameters_of_whole_blocks_are_all_of_their_module() -> None:
    model, _, _ = problem("gemma3_text", {"num_key_value_heads": 1})
    (attention, ffn), *_ = blocks(model)
    layer = model.base_model.layers[0]
    nothing = np.empty(0, dtype=np.int64)
    assert removed_parameters(model, {attention.name: nothing}) == sum(p.numel() for p in layer.self_attn.parameters())
    some = {attention.name: np.array([1, 2]), ffn.name: np.arange(5)}
    small = cut(model, some, "per_layer")
    assert removed_parameters(model, some) == model.num_parameters() - small.num_parameters()


def test_the_budget_is_split_as_the_paper_says() -> None:
    model, _, _ = problem("llama", {})
    attention = sum(p.numel() for p in model.base_model.layers[0].self_attn.parameters())
    ffn = sum(p.numel() for p in model.base_model.layers[0].mlp.parameters())
    *_, going, width = split(model, 0.6)
    assert going == round(4 * 0.6 ** (ffn / attention / 1.5)) > 0
    removed = going * attention + 4 * (48 - width) * ffn / 48
    assert removed == pytest.approx(0.6 * non_embedding_parameters(model), abs=4 * ffn / 48)
    with pytest.raises(ValueError, match="attention blocks"):
        split(model, 0.999)


def test_2ssp_keeps_neurons_that_speak_loudest_in_all_layers_alike() -> None:
    model, task, batches = problem("llama", {})
    loud = np.arange(0, 48, 3)
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.mlp.up_proj.weight[loud] *= 100
    chosen = two_ssp(model, task, batches, FRACTION)
    widths = {len(chosen.keep[ffn.name]) for _, ffn in blocks(model)}
    assert len(widths) == 1 and widths.pop() >= len(loud)
    assert all(np.isin(loud, chosen.keep[ffn.name]).all() for _, ffn in blocks(model))


@pytest.mark.parametrize("name", ["2ssp", "putri"])
def test_the_attention_that_does_nothing_goes_first(name: str) -> None:
    model, task, batches = problem("gemma3_text", {"num_key_value_heads": 1})
    idle = blocks(model)[2][0].name
    with torch.no_grad():
        for attention, _ in blocks(model):
            projection = projection_of(model, attention)
            projection.write(projection.weight * (0 if attention.name == idle else 10))
        model.base_model.layers[2].post_attention_layernorm.weight.fill_(-1)
    going = split(model, 0.5).going
    chosen = RIVALS[name](model, task, batches, 0.5)
    gone = {attention.name for attention, _ in blocks(model) if not len(chosen.keep.get(attention.name, [0]))}
    assert len(gone) == going >= 1
    assert perplexity(model, task, batches, {idle: np.empty(0, dtype=np.int64)}) == pytest.approx(
        perplexity(model, task, batches, {})
    )


def test_putri_takes_what_sparsegpt_values_most_and_refits_by_least_squares() -> None:
    """Both at what the layers below give, once they are cut and refitted."""
    model, task, batches = problem("llama", {})
    chosen = RIVALS["putri"](model, task, batches, 0.3)
    below = Chosen({})
    for _, ffn in blocks(model):
        with applied(model, below):
            second = moments(model, task, batches, [ffn])[ffn.name].second.numpy()
        weight, units = projection_of(model, ffn).weight.detach().double().numpy(), chosen.keep[ffn.name]
        refitted = chosen.weights[ffn.name].double().numpy()
        left = refitted @ second[units][:, units] - weight @ second[:, units]  # E[(W' x_S - W x) x_S']
        assert abs(left).max() < 1e-4 * abs(weight @ second).max()

        freedom = [1 / np.linalg.inv(second[j:, j:])[0, 0] for j in range(ffn.units)]
        values = (np.einsum("dc,cb,db->d", weight, second, weight) @ weight**2) * freedom
        assert values[units].sum() > 0.999 * np.sort(values)[-len(units) :].sum()
        below = Chosen({**below.keep, ffn.name: units}, {**below.weights, ffn.name: chosen.weights[ffn.name]})


def test_gates_find_the_neurons_that_count() -> None:
    model, task, batches = problem("llama", {})
    idle = np.arange(0, 48, 2)
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.mlp.down_proj.weight[:, idle] = 0
            layer.mlp.down_proj.weight *= 10
            layer.self_attn.o_proj.weight *= 10
    chosen = RIVALS["gates"](model, task, batches, 0.1, epochs=20)
    went = np.concatenate([np.setdiff1d(np.arange(48), chosen.keep[ffn.name]) for _, ffn in blocks(model)])
    assert np.isin(went, idle).mean() > 0.7


def test_gates_move_the_model_towards_the_dense_one() -> None:
    model, task, batches = problem("llama", {})
    with torch.no_grad():
        dense = [task.readout(model, batch) for batch in batches]

    def divergence(chosen: Chosen) -> float:
        with applied(model, chosen), torch.no_grad():
            pairs = zip(batches, dense, strict=True)
            return math.fsum(float(task.readout(model, batch).divergence(was).mean()) for batch, was in pairs)

    untrained = RIVALS["gates"](model, task, batches, FRACTION, epochs=0, scaling_epochs=0)
    trained = RIVALS["gates"](model, task, batches, FRACTION, epochs=20, scaling_epochs=10)
    assert divergence(trained) < divergence(untrained)
    with masked(model, masks={}):
        assert torch.equal(task.readout(model, batches[0]).outputs, dense[0].outputs)
