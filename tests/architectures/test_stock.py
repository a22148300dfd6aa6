"""What a stock config can say, found by building from it: sizes of each kind, biases, and what it says instead."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, Site
from hf_mabprune.architectures.stock import bias_fields, built_shapes, sizes_of_field, stock_config
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.surgery.cut import cut
from tests.architectures.variants import SEEING, TYPES, model_of, sites_of, variants
from tests.shows import Shows
from tests.tiny_models import head_of, keep_for, outputs_of, tiny_model
from tests.tiny_sizes import EXPERTS, HEADS, OF_TYPE, UNLIKE, WIDTH

ATTENTION = (
    "qwen3_moe",
    "olmoe",
    "granitemoe",
    "phimoe",
    "dots1",
    "deepseek_v3",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "cohere",
    "cohere2",
    "olmo",
    "qwen3_5_text",
)
BEHIND_FIRST = ("deepseek_v2", "deepseek_v3", "glm4_moe", "dots1", "ernie4_5_moe")  # layers with an FFN
BOTH = ("deepseek_v2", "llama", "granite", "modernbert", "nemotron")
EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 4}


@variants
def test_shapes_are_those_of_a_model_that_was_built(model_type: str, changes: dict[str, object]) -> None:
    model = model_of(model_type, **changes)
    state = model.base_model.state_dict()
    found = built_shapes(type(model), model.config)
    assert found == {name: list(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("model_type", TYPES)
def test_a_stock_config_says_fewer_neurons_and_leaves_the_models_own_alone(model_type: str) -> None:
    model = model_of(model_type)
    before = model.config.to_dict()
    kept = [(site, np.arange(16 if site.kind == "neuron" else site.units)) for site in sites_of(model)]
    if not all(site.spec.units for site, _ in kept):
        with pytest.raises(ValueError, match=f"a stock {model_type} config has no field for the number of neurons"):
            stock_config(model, kept)
        return
    small = stock_config(model, kept)
    assert type(small) is type(model.config)
    for site, units in kept:
        assert getattr(site.stack.config_of(small), site.spec.units) == len(units)
    changed = {name for name, value in small.to_dict().items() if before.get(name) != value}
    others = {"gpt2": {"n_inner"}, "distilbert": {"hidden_dim"}, "opt": {"ffn_dim"}, "lfm2": {"intermediate_size"}}
    others |= {key: {"d_ff"} for key in ("t5", "mt5")} | {key: {"vision_config"} for key in ("clip", "siglip")}
    others |= {key: {"text_config"} for key in SEEING} | {"qwen3_moe": {"moe_intermediate_size"}}
    others["qwen2_moe"] = {"moe_intermediate_size", "shared_expert_intermediate_size"}
    others |= {key: {"intermediate_size", "moe_intermediate_size"} for key in BEHIND_FIRST}
    two = {"encoder_ffn_dim", "decoder_ffn_dim"} if model.config.is_encoder_decoder else {"intermediate_size"}
    assert changed == others.get(model_type, two)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("model_type", TYPES)
def test_neurons_and_experts_can_have_any_number(model_type: str) -> None:
    model = model_of(model_type)
    for kind, full in (("neuron", WIDTH), ("expert", EXPERTS)):
        own = [site for site in sites_of(model) if site.kind == kind]
        own = [site for site in own if site.spec.units]
        assert not own or sizes_of_field(model, own) == set(range(1, full))


def one_by_one(model_type: str) -> PreTrainedModel:
    """A model whose heads have keys and values each, so that any number of them could go."""
    changes: dict[str, object] = {}
    for stack in ARCHITECTURES.get(model_type).stacks:
        for spec in stack.sites:
            if spec.groups and stack.config:
                changes[stack.config] = OF_TYPE[model_type][stack.config] | {spec.groups: HEADS}
            elif spec.groups:
                changes[spec.groups] = HEADS
    return model_of(model_type, **changes)


def refused(model: PreTrainedModel, sites: list[Site], said: set[int], hidden: int) -> str:
    """Why a stock config does not say a number: one that divides the hidden size, if there is one, and a large one."""
    numbers = {number for number in range(1, sites[0].units) if number not in said}
    names = {site.name for site in sites}
    if not numbers:
        return ""
    number = max(numbers, key=lambda count: (hidden % count == 0, count))
    with pytest.raises(ValueError) as error:
        stock_config(
            model,
            [(site, np.arange(number if site.name in names else site.units)) for site in sites_of(model)],
        )
    return str(error.value)


@pytest.mark.parametrize(
    "model_type", [pytest.param(each, marks=() if each in UNLIKE else pytest.mark.slow) for each in TYPES]
)
def test_what_a_stock_config_says_is_what_automodel_loads(model_type: str, tmp_path: Path, shows: Shows) -> None:
    model = one_by_one(model_type)
    for kind in {site.kind for site in sites_of(model)}:
        own = [site for site in sites_of(model) if site.kind == kind]
        fields = {site.field: [other for other in own if other.field == site.field] for site in own}
        said = set.intersection(*(sizes_of_field(model, sites) for sites in fields.values()))
        hidden = own[0].stack.config_of(model.config).hidden_size
        figures = {"counts": sorted(said), "units": own[0].units, "hidden": hidden}
        shows("sizes", model_type, [kind], "uniform", reason=refused(model, own, said, hidden), **figures)
        if said:
            number = max(count for count in said if kind != "neuron" or count % 8 == 0)
            small = cut(model, {site.name: np.arange(number) for site in own}, "uniform")
            save_checkpoint(small, tmp_path / kind, None, torch.float32)
            again = getattr(transformers, head_of(model_type)).from_pretrained(tmp_path / kind).eval()
            assert type(again) is type(model)
            assert {site.units for site in sites_of(again) if site.kind == kind} == {number}
            torch.testing.assert_close(outputs_of(again), outputs_of(small))


@pytest.mark.parametrize(
    ("model_type", "sizes", "counts"),
    [
        ("llama", EIGHT, {2, 4}),
        ("llama", {**EIGHT, "num_key_value_heads": 8}, {1, 2, 4}),
        ("llama", {**EIGHT, "num_key_value_heads": 2}, {4}),
        ("gemma3_text", EIGHT, {2, 4}),
        ("gemma3_text", {**EIGHT, "num_key_value_heads": 1}, {1, 2, 4}),
        ("mistral", EIGHT, {2, 4, 6}),
        ("mistral", {**EIGHT, "num_key_value_heads": 1}, {1, 2, 3, 4, 5, 6, 7}),
        ("mixtral", EIGHT, {2, 4, 6}),
        ("qwen3", {**EIGHT, "num_key_value_heads": 8}, {1, 2, 3, 4, 5, 6, 7}),
        ("vit", {"num_attention_heads": 8}, {1, 2, 3, 4, 5, 6, 7}),
        ("bert", {"num_attention_heads": 8}, set()),
        ("gpt2", {"n_head": 8}, set()),
        ("t5", {"num_heads": 8}, set()),
    ],
)
def test_head_counts_that_a_stock_config_can_say(model_type: str, sizes: dict[str, int], counts: set[int]) -> None:
    model = tiny_model(model_type, "AutoModel", **sizes)
    heads = [site for site in sites_of(model) if site.kind == "head"]
    assert sizes_of_field(model, heads) == counts
    assert model.config.num_attention_heads == 8


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bert", "it makes encoder.layer.0.attention.self.query.weight [32, 32], not [16, 32]"),
        ("gpt2", "it makes h.0.attn.c_attn.weight [32, 96], not [32, 48]"),
    ],
)
def test_where_a_config_cannot_say_it_the_first_shape_that_differs_is_named(model_type: str, reason: str) -> None:
    model = tiny_model(model_type, "AutoModel")
    kept = [(site, np.arange(2 if site.kind == "head" else site.units)) for site in sites_of(model)]
    with pytest.raises(ValueError) as error:
        stock_config(model, kept)
    remedy = "Use layout per_layer, or prune neurons only"
    assert str(error.value) == f"a stock {model_type} config cannot say 2 heads: {reason}. {remedy}"
    assert model.config.num_attention_heads == HEADS


def test_a_model_with_per_layer_sizes_has_no_stock_config() -> None:
    model = tiny_model("gpt2", "AutoModel")
    small = cut(model, keep_for(model, "uniform"), "per_layer")
    with pytest.raises(ValueError, match="the model has per-layer sizes already: use layout per_layer"):
        stock_config(small, [(site, np.arange(site.units)) for site in sites_of(small)])


@pytest.mark.parametrize("model_type", TYPES)
def test_fields_that_give_output_projections_a_bias(model_type: str) -> None:
    model = tiny_model(model_type, "AutoModel")
    fields = {
        **{key: {"head": "attention_bias"} for key in ATTENTION},
        **{key: {"head": "attention_bias", "neuron": "mlp_bias"} for key in BOTH},
        **{key: {"head": "use_bias", "neuron": "use_bias"} for key in ("ernie4_5", "ernie4_5_moe")},
        "seed_oss": {"head": "attention_out_bias", "neuron": "mlp_bias"},
        "smollm3": {"head": "attention_bias", "neuron": "mlp_bias"},
    }
    expected = {
        site.name: fields[model_type][site.kind]
        for site in sites_of(model)
        if site.kind in fields.get(model_type, {}) and site.expert is None
    }
    assert bias_fields(model) == expected
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
