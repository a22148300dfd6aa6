"""The contract of a model family, over every registered type: sites and costs are those that surgery finds."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, linear_at
from hf_mabprune.architectures.cost import arm_table, count_macs, count_parameters
from hf_mabprune.effects.masking import masked
from hf_mabprune.surgery.cut import cut
from tests.seeds import moved
from tests.tiny_models import HEADS, LAYERS, WIDTH, keep_for, tiny_model

TOKENS = 7
TYPES = ARCHITECTURES.names()
ENCODERS = ("bert", "roberta", "electra", "xlm-roberta")
VARIANTS = [(model_type, {}) for model_type in TYPES] + [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2}),
    ("llama", {"num_key_value_heads": 4}),
    ("mistral", {"head_dim": 12}),
    ("qwen3", {"head_dim": 8}),
]


def model_of(model_type: str, **changes: object) -> PreTrainedModel:
    encoder = model_type in ENCODERS
    return tiny_model(
        model_type, "AutoModelForSequenceClassification" if encoder else "AutoModelForCausalLM", **changes
    )


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=str)
def test_sites_have_the_sizes_of_their_modules(model_type: str, changes: dict[str, object]) -> None:
    model = model_of(model_type, **changes)
    sites = architecture_of(model).sites(model)
    assert [(site.kind, site.layer) for site in sites] == [
        (kind, layer) for layer in range(LAYERS) for kind in ("neuron", "head")
    ]
    for site in sites:
        assert site.units == {"neuron": WIDTH, "head": model.config.num_attention_heads}[site.kind]
        assert site.units % site.group == 0
        columns = site.units * site.unit_size
        assert linear_at(model, site.output).in_features == columns
        assert {linear_at(model, path).out_features for path in site.per_unit} == {columns}
        assert {linear_at(model, path).out_features for path in site.per_group} <= {columns // site.group}
        for path, names in site.attributes.items():
            module = model.base_model.get_submodule(path)
            for name, size in names.items():
                assert getattr(module, name) == site.sizes(site.units)[size], f"{path}.{name}"


@pytest.mark.parametrize("model_type", TYPES)
def test_a_head_arm_is_what_shares_keys_and_values(model_type: str) -> None:
    model = model_of(model_type)
    arms = arm_table(model, ["head"], 16, TOKENS)
    size = 1 if model_type in ENCODERS else 2
    assert set(arms.units.tolist()) == {size}
    assert len(arms) == LAYERS * HEADS // size


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=str)
def test_an_arm_costs_what_surgery_removes(model_type: str, changes: dict[str, object]) -> None:
    model = model_of(model_type, **changes)
    arms = arm_table(model, ["neuron", "head"], 20, TOKENS)
    parameters, macs = count_parameters(model), count_macs(model, TOKENS)
    assert set(arms.units[arms.of_kind("neuron")].tolist()) == {20, 8}
    for arm in [*np.flatnonzero(arms.layer == 0), len(arms) - 1]:
        kept = np.arange(len(arms)) != arm
        small = cut(model, arms.kept_units(kept), "per_layer")
        left = count_parameters(small)
        assert parameters["parameters"] - left["parameters"] == arms.parameters[arm]
        part = "ffn_parameters" if arms.kind[arm] == "neuron" else "attention_parameters"
        assert parameters[part] - left[part] == arms.parameters[arm]
        assert macs - count_macs(small, TOKENS) == arms.macs[arm]


@pytest.mark.parametrize("model_type", TYPES)
def test_costs_add_up(model_type: str) -> None:
    model = model_of(model_type)
    arms = arm_table(model, ["neuron", "head"], 16, TOKENS)
    kept = np.random.default_rng(moved(3)).random(len(arms)) < 0.5
    kept[[rows[0] for _, _, rows in arms.groups()]] = True
    assert 0 < kept.sum() < len(arms)
    small = cut(model, arms.kept_units(kept), "per_layer")
    before, after = count_parameters(model), count_parameters(small)
    assert before["parameters"] - after["parameters"] == arms.parameters[~kept].sum()
    assert count_macs(model, TOKENS) - count_macs(small, TOKENS) == arms.macs[~kept].sum()


def test_costs_by_hand() -> None:
    bert = arm_table(model_of("bert"), ["neuron", "head"], 16, TOKENS)
    # A neuron: a row of 32 weights with its bias, and a column of 32. A head of 8: three times 8 rows, 8 columns.
    assert set(bert.parameters[bert.of_kind("neuron")].tolist()) == {16 * (32 + 1 + 32)}
    assert set(bert.parameters[bert.of_kind("head")].tolist()) == {3 * 8 * (32 + 1) + 8 * 32}
    assert set(bert.macs[bert.of_kind("neuron")].tolist()) == {16 * 64 * 7}
    assert set(bert.macs[bert.of_kind("head")].tolist()) == {4 * 8 * 32 * 7 + 2 * 7 * 7 * 8}
    model = model_of("llama")
    llama = arm_table(model, ["neuron", "head"], 16, TOKENS)
    # Gated: two rows and a column a neuron. A group: two query heads of 8, one key and one value head, output columns.
    assert set(llama.parameters[llama.of_kind("neuron")].tolist()) == {16 * 3 * 32}
    assert set(llama.parameters[llama.of_kind("head")].tolist()) == {(16 + 8 + 8 + 16) * 32}
    assert set(llama.macs[llama.of_kind("head")].tolist()) == {48 * 32 * 7 + 2 * 7 * 7 * 16}


@pytest.mark.parametrize("model_type", TYPES)
def test_the_table_is_sorted_and_covers_every_unit(model_type: str) -> None:
    model = model_of(model_type)
    arms = arm_table(model, ["head", "neuron"], 20, TOKENS)
    frame = arms.to_frame().sort_values(["kind", "layer", "index"], ascending=[False, True, True], kind="stable")
    assert frame.index.tolist() == list(range(len(arms)))
    for kind, layer, rows in arms.groups():
        assert arms.start[rows[0]] == 0
        assert np.array_equal(arms.start[rows[1:]], arms.stop[rows[:-1]])
        assert arms.stop[rows[-1]] == {"neuron": WIDTH, "head": HEADS}[kind]
        assert arms.index[rows].tolist() == list(range(len(rows)))
        assert layer in range(LAYERS)
    neurons = arm_table(model, ["neuron"], 1, TOKENS)
    assert set(neurons.kind) == {"neuron"}
    assert len(neurons) == LAYERS * WIDTH


@pytest.mark.parametrize("model_type", TYPES)
def test_a_pruned_model_is_of_the_same_family_with_its_new_sizes(model_type: str) -> None:
    model = model_of(model_type)
    keep = keep_for(model, "per_layer")
    small = cut(model, keep, "per_layer")
    assert type(architecture_of(small)) is type(architecture_of(model))
    for site in architecture_of(small).sites(small):
        assert site.units == len(keep.of(site.kind)[site.layer])


@pytest.mark.parametrize("model_type", TYPES)
def test_ffn_arms_leave_the_attention_block_of_their_layer_alone(model_type: str) -> None:
    model = model_of(model_type)
    architecture = architecture_of(model)
    seen = []
    for layer in architecture.layer_list(model):
        block = layer.get_submodule(architecture.attention_block)
        block.register_forward_hook(lambda module, arguments, output: seen.append(output[0].detach().clone()))
    mask = torch.ones(WIDTH)
    mask[:40] = 0
    count_macs(model, TOKENS)
    with masked(model, neuron_mask={0: mask}):
        count_macs(model, TOKENS)
    assert len(seen) == 2 * LAYERS
    assert (seen[0] == seen[LAYERS]).all()
    assert not (seen[1] == seen[LAYERS + 1]).all(), "the next layer's attention does change"


@pytest.mark.parametrize("model_type", TYPES)
def test_layer_fields_are_the_familys_own(model_type: str) -> None:
    model = model_of(model_type)
    architecture = architecture_of(model)
    ffn, attention = architecture.sites(model)[:2]
    fields = architecture.layer_fields(ffn, 32) | architecture.layer_fields(attention, 2)
    assert fields["intermediate_size"] == 32
    assert fields["num_attention_heads"] == 2
    assert fields.get("num_key_value_heads", 1) == 1
    assert all(hasattr(model.config, name) for name in fields)


@pytest.mark.parametrize("model_type", TYPES)
def test_uniform_config_leaves_the_models_own_alone(model_type: str) -> None:
    model = model_of(model_type)
    before = model.config.to_dict()
    small = architecture_of(model).uniform_config(model.config, 16, HEADS)
    assert small.intermediate_size == 16
    assert type(small) is type(model.config)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("model_type", ["gpt2", "distilbert"])
def test_other_types_are_refused_with_the_supported_ones(model_type: str) -> None:
    small = {"n_embd": 8, "n_layer": 1, "n_head": 2, "dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2}
    model = AutoModel.from_config(AutoConfig.for_model(model_type, vocab_size=8, **small))
    with pytest.raises(ValueError) as error:
        architecture_of(model)
    assert f"unknown architecture '{model_type}'." in str(error.value)
    assert str(error.value).endswith(f"Known: {', '.join(TYPES)}")


def test_quantised_models_are_refused() -> None:
    model = model_of("bert")
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(ValueError, match="the model is quantised: packed weights cannot be cut"):
        architecture_of(model)
    model = model_of("bert")
    model.is_quantized = True
    with pytest.raises(ValueError, match="Prune first, then quantise"):
        architecture_of(model)


@pytest.mark.parametrize(("name", "value"), [("_hf_peft_config_loaded", True), ("peft_config", {"default": None})])
def test_models_with_adapters_are_refused(name: str, value: object) -> None:
    model = model_of("llama")
    setattr(model, name, value)
    with pytest.raises(ValueError, match=r"unmerged adapters. Merge them first"):
        architecture_of(model)


def test_projections_that_are_no_linear_modules_are_refused() -> None:
    model = model_of("llama")
    model.base_model.layers[1].mlp.down_proj = nn.Identity()
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj is a Identity, not an nn.Linear"):
        architecture_of(model).sites(model)
