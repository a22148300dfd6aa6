"""Layers on disk come in one at a time, each once for all batches, and give what they give in memory."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.checkpoints.load import load_weights, reload_difference
from hf_mabprune.checkpoints.offload import Offload, bytes_at_hand, offload_of
from hf_mabprune.checkpoints.save import round_weights, save_checkpoint
from hf_mabprune.compensation import DenseReference
from hf_mabprune.effects.activations import moments
from hf_mabprune.effects.finished_layers import FinishedLayers
from hf_mabprune.effects.kfac import kfac_factors
from hf_mabprune.evaluation.quality import evaluate, forward_of, masked_forward_of
from hf_mabprune.surgery.cut import cut
from tests.problems import head_of, problem, selection, some_context
from tests.tiny_models import inputs_for

FAMILIES = ["llama", "gpt2", "mixtral", "t5"]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of logits
DISK = {"device_map": {"": "disk"}}


def on_disk(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Saves a model and reads it again with all weights on disk."""
    model.save_pretrained(folder)
    return load_weights(head_of(model.config.model_type), str(folder), DISK, dtype=dtype).eval()


def offload(model: PreTrainedModel) -> Offload:
    found = offload_of(model)
    assert found is not None
    return found


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    return [model.base_model.get_submodule(layer.path) for layer in architecture_of(model).layers(model)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_layer_is_in_memory_at_a_time_and_once_for_all_batches(model_type: str, tmp_path: Path) -> None:
    model, task, batches, _ = problem(model_type)
    away = on_disk(model, tmp_path)
    layers, sites = layers_of(away), architecture_of(model).sites(model)
    homes = {weight: weight.data_ptr() for weight in away.parameters()}
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, sum(weight.nbytes for weight, home in homes.items() if weight.data_ptr() != home))

    for module in away.modules():
        module.register_forward_hook(look)
    sites = [site for site in sites if site.kind != "expert"]
    found, known = moments(away, task, batches, sites), moments(model, task, batches, sites)
    assert all(torch.equal(found[name].second, known[name].second) for name in known)
    assert offload(away).brought == len(layers) < len(layers) * len(batches)
    largest = max(sum(weight.nbytes for weight in layer.parameters()) for layer in layers)
    assert most == largest
    assert bytes_at_hand(away) < model.get_memory_footprint() == bytes_at_hand(model)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_are_those_of_the_model_in_memory(model_type: str, tmp_path: Path) -> None:
    model, task, batches, _ = problem(model_type)
    away = on_disk(model, tmp_path)
    sites = [site for site in architecture_of(model).sites(model) if site.kind != "expert"]
    (found, _), (known, _) = kfac_factors(away, task, batches, sites), kfac_factors(model, task, batches, sites)
    for name, factors in known.items():
        torch.testing.assert_close(found[name].outputs, factors.outputs)
        torch.testing.assert_close(found[name].inputs.second, factors.inputs.second)


def test_a_backward_pass_holds_on_to_no_layer(tmp_path: Path) -> None:
    away = on_disk(problem("llama")[0], tmp_path)
    saved: list[torch.Tensor] = []
    pack = offload(away)._pack
    offload(away)._pack = lambda tensor: saved.append(pack(tensor)) or saved[-1]  # type: ignore[method-assign]
    away.requires_grad_(False)
    with offload(away).backward():
        away(inputs_embeds=torch.zeros(1, 3, 32, requires_grad=True))
    held = {tensor.untyped_storage().data_ptr() for tensor in saved if isinstance(tensor, torch.Tensor)}
    assert not held & {weight.untyped_storage().data_ptr() for weight in offload(away)._homes}
    assert any(not isinstance(tensor, torch.Tensor) for tensor in saved), "of weights, it knows where they lie"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_cut_model_brings_layers_in_and_is_saved(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = problem(model_type)[0].to(dtype)
    away, keep = on_disk(model, tmp_path / "dense", dtype), selection(model, "per_layer")
    inputs = inputs_for(model)
    with torch.inference_mode():
        away(**inputs)  # so that a layer is in
    small, known = cut(away, keep, "per_layer").eval(), cut(model, keep, "per_layer").eval()
    with torch.inference_mode():
        torch.testing.assert_close(small(**inputs).logits, known(**inputs).logits, rtol=0, atol=TOLERANCE[dtype])
    assert offload(small) is not offload(away)
    assert offload(small).brought - offload(away).brought == len(layers_of(small)) == len(layers_of(away))
    round_weights(small, torch.bfloat16)
    save_checkpoint(small, tmp_path / "small", None, torch.bfloat16)
    assert reload_difference(small, tmp_path / "small", head_of(model_type), inputs) <= TOLERANCE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(away.parameters(), model.parameters(), strict=True)), "dense"


def test_a_cut_model_goes_at_once_when_nobody_holds_it(tmp_path: Path) -> None:
    away = on_disk(problem("llama")[0], tmp_path)
    gc.collect()
    gc.disable()
    try:
        weight = weakref.ref(cut(away, selection(away, "per_layer"), "per_layer").base_model.layers[0].mlp.down_proj)
        assert weight() is None, "of dozens that a search measures, no two need room"
    finally:
        gc.enable()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
def test_what_is_written_while_a_layer_is_in_stays(model_type: str, tmp_path: Path) -> None:
    model = problem(model_type)[0]
    small = cut(on_disk(model, tmp_path), selection(model, "per_layer"), "per_layer").eval()
    site = architecture_of(small).sites(small)[0]
    with torch.inference_mode():
        small(**inputs_for(model))
    offload(small).bring(layers_of(small)[0])
    projection_of(small, site).write(written := torch.ones_like(projection_of(small, site).weight))
    offload(small).put_away()
    assert torch.equal(projection_of(small, site).weight, written)


def test_both_models_of_a_divergence_bring_each_layer_in_once(tmp_path: Path) -> None:
    model, task, batches, _ = problem("llama")
    away, keep = on_disk(model, tmp_path), selection(model, "per_layer")
    small, known = cut(away, keep, "per_layer").eval(), cut(model, keep, "per_layer").eval()
    found = DenseReference.on(away, task, batches * 4).divergence(small)
    assert found == pytest.approx(DenseReference.on(model, task, batches * 4).divergence(known))
    assert [offload(each).brought for each in (away, small)] == [len(layers_of(away))] * 2


def test_a_split_brings_each_layer_in_once(tmp_path: Path) -> None:
    model, task, batches, arms = problem("llama")
    away, keep = on_disk(model, tmp_path), arms.kept_units(some_context(arms))
    for forward_away, forward in (
        (forward_of(away, task, batches), forward_of(model, task)),
        (masked_forward_of(away, task, keep, batches), masked_forward_of(model, task, keep)),
    ):
        found, known = (evaluate(each, task, batches, Accelerator(cpu=True)) for each in (forward_away, forward))
        assert found.loss == pytest.approx(known.loss)
    assert offload(away).brought == 2 * len(layers_of(away))


def test_a_pruned_model_runs_ahead_on_the_batches_that_are_asked_for(tmp_path: Path) -> None:
    model, task, batches, _ = problem("llama")
    away = on_disk(model, tmp_path)
    ahead = FinishedLayers(away, task, batches).ahead([2])
    with torch.inference_mode(), ahead.skipped(2):
        found = task.readout(away, batches[2]).outputs
    assert torch.equal(found, task.readout(model, batches[2]).outputs)
    assert offload(away).brought == len(layers_of(away))
