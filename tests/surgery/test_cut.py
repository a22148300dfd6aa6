"""Surgery layer by layer says the same as surgery on the model, and holds no more than a layer."""

import gc
import weakref

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Projection, architecture_of, projection_of
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.arms import KeepIndices
from hf_mabprune.surgery.biases import declare_biases
from hf_mabprune.surgery.cut import Layout, cut, cut_layers, smaller_class, smaller_config
from hf_mabprune.surgery.pieces import pieces
from tests.problems import selection
from tests.tiny_models import (
    NOTHING,
    deep_model,
    head_of,
    heads_of,
    keep_for,
    keep_of,
    outputs_of,
    site_of,
    tiny_model,
)
from tests.tiny_sizes import UNLIKE


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", UNLIKE)
def test_pieces_are_the_state_dict_of_the_cut_model(model_type: str, layout: Layout) -> None:
    classifier = "AutoModelForSequenceClassification"
    dense = tiny_model(model_type, classifier if classifier in heads_of(model_type) else head_of(model_type))
    keep = selection(dense, layout)
    expected = cut(dense, keep, layout).state_dict()
    parts = list(pieces(dense, keep, layout))

    layers = architecture_of(dense).layers(dense)
    assert len(parts) == 1 + len(layers), "what is outside the layers, then a piece a layer"
    for layer, part in zip(layers, parts[1:], strict=True):
        assert part and all(f"{layer.path}." in name for name in part)
    together = {name: tensor for part in parts for name, tensor in part.items()}
    assert sum(map(len, parts)) == len(together), "no tensor comes twice"
    places = {expected[name].data_ptr() for name in together}
    assert all(expected[name].data_ptr() in places for name in expected.keys() - together.keys()), "tied ones"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in together.items())


@pytest.mark.parametrize("model_type", UNLIKE)
def test_a_passing_copy_is_the_same_model_and_takes_what_is_cut_alone(model_type: str) -> None:
    dense = tiny_model(model_type, "AutoModel")
    keep = selection(dense, "per_layer")
    own, passing = cut(dense, keep, "per_layer"), cut(dense, keep, "per_layer", passing=True)
    expected = dict(own.named_parameters())
    there = {parameter.data_ptr() for parameter in dense.parameters()}
    shared = [name for name, parameter in passing.named_parameters() if parameter.data_ptr() in there]
    assert shared and not any(expected[name].data_ptr() in there for name in expected)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in passing.named_parameters())
    assert all(projection.parts[0].data_ptr() not in there for projection in cut_projections(passing, keep))


def cut_projections(model: PreTrainedModel, keep: KeepIndices) -> list[Projection]:
    """Projections that a refit may write to."""
    sites = architecture_of(model).sites(model)
    return [projection_of(model, site) for site in sites if site.name in keep and site.expert is None]


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", UNLIKE)
def test_the_smaller_config_needs_no_smaller_model(model_type: str, layout: Layout) -> None:
    dense = tiny_model(model_type, "AutoModel")
    before = dense.config.to_dict()
    keep = selection(dense, layout)
    small = cut(dense, keep, layout)
    config = smaller_config(dense, keep, layout)

    assert type(config) is type(small.config)
    assert config.to_dict() == small.config.to_dict()
    assert smaller_class(dense, layout) is type(small)
    assert dense.config.to_dict() == before


@pytest.mark.parametrize("model_type", UNLIKE)
def test_layers_come_in_order_with_the_parameters_of_the_cut_model(model_type: str) -> None:
    dense = tiny_model(model_type, "AutoModel")
    whole = outputs_of(dense, "AutoModel")
    keep = keep_for(dense, "per_layer")
    small = cut(dense, keep, "per_layer")
    cuts = list(cut_layers(dense, keep))

    layers = architecture_of(dense).layers(dense)
    assert len(cuts) == len(layers)
    for layer, parameters in zip(layers, cuts, strict=True):
        assert parameters and all(path.startswith(f"{layer.path}.") for path in parameters)
        for path, parameter in parameters.items():
            assert torch.equal(parameter, small.base_model.get_parameter(path))
    changed = {path for parameters in cuts for path in parameters}
    for path, parameter in small.base_model.named_parameters():
        before = part_at(dense.base_model, path)
        assert path in changed or torch.equal(parameter, before)
    sites = {site.name: site for site in architecture_of(small).sites(small)}
    for name, site in sites.items():
        assert site.units == len(keep[name]) and projection_of(small, site).weight.shape[1] >= site.columns
    assert torch.equal(whole, outputs_of(dense, "AutoModel")), "the dense model stays as it was"


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "mixtral"])
def test_what_is_not_cut_stays_out_of_the_way(model_type: str) -> None:
    dense = tiny_model(model_type, "AutoModel")
    site = site_of(dense, "head", 1)
    keep = {site.name: np.arange(2)}
    first, second = cut_layers(dense, keep)
    assert not first and all(path.startswith(site.prefix) for path in second)
    small = cut(dense, keep, "per_layer")
    assert not any(mine is theirs for mine, theirs in zip(small.parameters(), dense.parameters(), strict=True))
    assert site_of(small, "head", 1).units == 2 and site_of(small, "head", 0).units == 4


def test_experts_that_stay_keep_their_own_neurons() -> None:
    dense = tiny_model("mixtral", "AutoModel")
    keep = {f"layers.0.mlp.experts.{expert}": np.arange(expert, expert + 8) for expert in range(4)}
    keep["layers.0.mlp.gate"] = np.array([1, 3])
    before, after = (model.layers[0].mlp for model in (dense, cut(dense, keep, "per_layer")))
    assert after.experts.down_proj.shape == (2, 32, 8) and after.experts.gate_up_proj.shape == (2, 16, 32)
    for place, expert in enumerate((1, 3)):
        neurons = slice(expert, expert + 8)
        down, (gate, up) = before.experts.down_proj[expert], before.experts.gate_up_proj[expert].split(48)
        assert torch.equal(after.experts.down_proj[place], down[:, neurons])
        assert torch.equal(after.experts.gate_up_proj[place], torch.cat([gate[neurons], up[neurons]]))
        assert torch.equal(after.gate.weight[place], before.gate.weight[expert])
    assert (after.experts.num_experts, after.experts.intermediate_dim, after.gate.num_experts) == (2, 8, 2)


def test_each_layer_of_t5_has_the_position_biases_of_its_own_heads() -> None:
    dense = tiny_model("t5", "AutoModel", num_layers=3)
    path = "encoder.block.{}.layer.0.SelfAttention"
    keep = {path.format(1) + ".o": np.array([3]), path.format(2) + ".o": np.array([0, 2])}
    small = cut(dense, keep, "per_layer")
    table = dense.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    for number, heads in enumerate(([0, 1, 2, 3], [3], [0, 2])):
        attention = small.get_submodule(path.format(number))
        assert torch.equal(attention.relative_attention_bias.weight, table[:, heads])
        assert attention.has_relative_attention_bias and attention.n_heads == len(heads)
    others = [name for name, _ in small.decoder.named_parameters() if "relative_attention_bias" in name]
    assert others == ["block.0.layer.0.SelfAttention.relative_attention_bias.weight"], "the other stack stays stock"


def test_a_layer_is_cut_when_it_is_asked_for() -> None:
    dense = tiny_model("bert", "AutoModel")
    cuts = cut_layers(dense, keep_for(dense, "per_layer"))
    next(cuts)
    path = "encoder.layer.1.attention.output.dense.weight"
    with torch.no_grad():
        dense.get_parameter(path).fill_(7.0)
    assert (next(cuts)[path] == 7.0).all()
    assert next(cuts, None) is None


def test_no_more_than_one_layer_is_alive_at_a_time() -> None:
    dense = tiny_model("llama", "AutoModelForCausalLM", num_hidden_layers=5)
    keep = keep_of(dense, neurons={layer: range(0, 48, 2) for layer in range(5)})
    own = {parameter.data_ptr() for parameter in dense.parameters()}
    parts = pieces(dense, keep, "per_layer")
    outside = next(parts)
    assert {tensor.data_ptr() for tensor in outside.values()} <= own, "what is not cut takes no memory of its own"
    made: list[weakref.ref[torch.Tensor]] = []
    for _ in range(5):
        part = next(parts)
        fresh = [tensor for tensor in part.values() if tensor.data_ptr() not in own]
        assert fresh, "the projections are new"
        assert not [ref for ref in made if ref() is not None], "the layer before is gone"
        made += [weakref.ref(tensor) for tensor in part.values()]
        del part, fresh
        gc.collect()
        assert not [ref for ref in made if ref() is not None], "the generator holds nothing that it handed on"
    assert next(parts, None) is None


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("llama", "AutoModelForCausalLM"),
        ("bert", "AutoModelForMaskedLM"),
        ("gpt2", "AutoModelForCausalLM"),
        ("mixtral", "AutoModelForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM"),
    ],
)
def test_tied_weights_come_once(model_type: str, head: str) -> None:
    dense = tiny_model(model_type, head, tie_word_embeddings=True)
    parts = list(pieces(dense, keep_for(dense, "per_layer"), "per_layer"))
    embeddings = dense.get_input_embeddings().weight
    assert [tensor.data_ptr() for tensor in parts[0].values()].count(embeddings.data_ptr()) == 1
    assert {"lm_head.weight", "cls.predictions.decoder.weight"}.isdisjoint(parts[0])
    assert not any(tensor.data_ptr() == embeddings.data_ptr() for part in parts[1:] for tensor in part.values())


def test_what_the_layout_cannot_say_is_refused_before_the_first_piece() -> None:
    dense = tiny_model("bert", "AutoModel")
    with pytest.raises(ValueError, match=r"cannot say 2 heads: .*per_layer"):
        pieces(dense, keep_of(dense, heads={0: range(2), 1: range(2)}), "uniform")
    with pytest.raises(ValueError, match=r"cannot say that encoder.layer.1.output.dense is gone: use per_layer"):
        pieces(dense, keep_of(dense, neurons={0: range(2), 1: ()}), "uniform")
    dense = tiny_model("mixtral", "AutoModel")
    with pytest.raises(ValueError, match=r"layers.0.self_attn.o_proj would keep 0 heads: at least 2 must stay"):
        cut_layers(dense, keep_of(dense, heads={0: ()}))
    with pytest.raises(ValueError, match="all experts of a layer keep as many neurons"):
        pieces(dense, {"layers.0.mlp.experts.0": np.arange(8)}, "per_layer")


def test_a_cut_of_a_cut_hands_on_the_biases_of_its_plan() -> None:
    dense = tiny_model("mistral", "AutoModel")
    once = cut(dense, keep_of(dense, neurons={0: range(9)}), "per_layer")
    site = site_of(once, "neuron", 0)
    projection_of(once, site).write_bias(torch.arange(32.0))
    declare_biases(once, [site])
    keep = {site.name: np.arange(4)}

    parameters = smaller_config(once, keep, "per_layer").mabprune["parameters"]
    assert parameters[f"{site.name}.bias"] == [32]
    assert parameters[f"{site.name}.weight"] == [32, 4]
    assert torch.equal(list(pieces(once, keep, "per_layer"))[1][f"{site.name}.bias"], torch.arange(32.0))
    assert torch.equal(projection_of(cut(once, keep, "per_layer"), site).bias, torch.arange(32.0))


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5"])
def test_pieces_leave_out_layers_that_go_as_a_whole(model_type: str) -> None:
    dense = deep_model(model_type)
    keep = {architecture_of(dense).whole_layers(dense)[1].name: NOTHING}
    expected = cut(dense, keep, "uniform").state_dict()
    together = {name: tensor for part in pieces(dense, keep, "uniform") for name, tensor in part.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in together.items())
    tied = {expected[name].data_ptr() for name in together}
    assert all(expected[name].data_ptr() in tied for name in expected.keys() - together.keys())
    assert smaller_config(dense, keep, "uniform").to_dict() == cut(dense, keep, "uniform").config.to_dict()
