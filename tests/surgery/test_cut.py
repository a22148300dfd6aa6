"""Surgery site by site and layer by layer says the same as surgery on the model, and holds no more than a layer."""

import gc
import weakref

import numpy as np
import pytest
import torch

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, linear_at
from hf_mabprune.arms import KeepIndices
from hf_mabprune.surgery.biases import declare_biases
from hf_mabprune.surgery.cut import Layout, cut, cut_sites, smaller_class, smaller_config
from hf_mabprune.surgery.pieces import pieces
from tests.problems import selection
from tests.tiny_models import LAYERS, keep_for, outputs_of, tiny_model

TYPES = ARCHITECTURES.names()


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", TYPES)
def test_pieces_are_the_state_dict_of_the_cut_model(model_type: str, layout: Layout) -> None:
    dense = tiny_model(model_type, "AutoModelForSequenceClassification")
    keep = selection(model_type, dense, layout)
    expected = cut(dense, keep, layout).state_dict()
    parts = list(pieces(dense, keep, layout))

    assert len(parts) == 1 + LAYERS, "what is outside the layers, then a piece a layer"
    for layer, part in enumerate(parts[1:]):
        assert all(f".{layer}." in name for name in part)
    together = {name: tensor for part in parts for name, tensor in part.items()}
    assert sum(map(len, parts)) == len(together), "no tensor comes twice"
    assert together.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in together.items())


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", TYPES)
def test_the_smaller_config_needs_no_smaller_model(model_type: str, layout: Layout) -> None:
    dense = tiny_model(model_type, "AutoModel")
    keep = selection(model_type, dense, layout)
    small = cut(dense, keep, layout)
    config = smaller_config(dense, keep, layout)

    assert type(config) is type(small.config)
    assert config.to_dict() == small.config.to_dict()
    assert smaller_class(dense, layout) is type(small)


@pytest.mark.parametrize("model_type", TYPES)
def test_sites_come_in_order_with_the_projections_of_the_cut_model(model_type: str) -> None:
    dense = tiny_model(model_type, "AutoModel")
    whole = outputs_of(dense, "AutoModel")
    keep = keep_for(dense, "per_layer")
    small = cut(dense, keep, "per_layer")
    cuts = list(cut_sites(dense, keep))

    assert [site for site, _ in cuts] == architecture_of(dense).sites(dense)
    for site, projections in cuts:
        assert tuple(projections) == site.linears()
        assert projections[site.output].in_features == len(keep.of(site.kind)[site.layer]) * site.unit_size
        for path, linear in projections.items():
            expected = linear_at(small, path)
            assert torch.equal(linear.weight, expected.weight)
            assert (linear.bias is None) == (expected.bias is None)
    assert torch.equal(whole, outputs_of(dense, "AutoModel")), "the dense model stays as it was"


def test_a_site_is_cut_when_it_is_asked_for() -> None:
    dense = tiny_model("bert", "AutoModel")
    cuts = cut_sites(dense, keep_for(dense, "per_layer"))
    next(cuts)
    attention = linear_at(dense, "encoder.layer.0.attention.output.dense")
    with torch.no_grad():
        attention.weight.fill_(7.0)
    site, projections = next(cuts)
    assert site.kind == "head"
    assert (projections[site.output].weight == 7.0).all()


def test_no_more_than_one_layer_is_alive_at_a_time() -> None:
    dense = tiny_model("llama", "AutoModelForCausalLM", num_hidden_layers=5)
    keep = KeepIndices(neurons={layer: np.arange(0, 48, 2) for layer in range(5)}, heads={})
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


@pytest.mark.parametrize("head", ["AutoModelForCausalLM", "AutoModelForMaskedLM"])
def test_tied_weights_come_once(head: str) -> None:
    model_type = "llama" if head == "AutoModelForCausalLM" else "bert"
    dense = tiny_model(model_type, head, tie_word_embeddings=True)
    outside = next(pieces(dense, keep_for(dense, "per_layer"), "per_layer"))
    embeddings = dense.get_input_embeddings().weight
    assert [tensor.data_ptr() for tensor in outside.values()].count(embeddings.data_ptr()) == 1
    assert {"lm_head.weight", "cls.predictions.decoder.weight"}.isdisjoint(outside)


def test_what_the_layout_cannot_say_is_refused_before_the_first_piece() -> None:
    dense = tiny_model("bert", "AutoModel")
    keep = KeepIndices(neurons={}, heads={0: np.arange(2), 1: np.arange(2)})
    with pytest.raises(ValueError, match=r"cannot say 2 heads of 8.*per_layer"):
        pieces(dense, keep, "uniform")
    with pytest.raises(ValueError, match="layer 1 would keep no neurons"):
        cut_sites(dense, KeepIndices(neurons={1: np.arange(0)}, heads={}))


def test_a_cut_of_a_cut_hands_on_the_biases_of_its_plan() -> None:
    once = cut(tiny_model("mistral", "AutoModel"), KeepIndices(neurons={0: np.arange(9)}, heads={}), "per_layer")
    site = architecture_of(once).sites(once)[0]
    linear_at(once, site.output).bias = torch.nn.Parameter(torch.arange(32.0))
    declare_biases(once, [site])
    keep = KeepIndices(neurons={0: np.arange(4)}, heads={})

    assert smaller_config(once, keep, "per_layer").mabprune["biases"] == [site.output]
    assert torch.equal(list(pieces(once, keep, "per_layer"))[1][f"{site.output}.bias"], torch.arange(32.0))
