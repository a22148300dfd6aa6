"""The file that travels: plans give models their sizes, checkpoints load everywhere, and a hostile plan is refused."""

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.modeling_pruned import read_plan, resize
from tests.checkpoints.outside import loaded_outside
from tests.seeds import moved

# Hidden size 32, 2 layers, 4 heads of 8, 48 neurons; the plans keep 2 or 3 heads and 40 neurons in one layer.
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": TEXT,
    "mpnet": TEXT,
    "llama": {**TEXT, "num_key_value_heads": 2},
    "phi3": {**TEXT, "num_key_value_heads": 2},
    "mixtral": {**TEXT, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 64, "n_positions": 64},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64},
    "vit": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 4,
    },
}


def dense(outputs: int, *paths: str) -> dict[str, list[int]]:
    """Shapes of Linear modules with a bias that get fewer outputs."""
    return {f"{path}.{name}": [outputs, 32][:size] for path in paths for name, size in (("weight", 2), ("bias", 1))}


SELF, ATTENTION, MPNET = "encoder.layer.1.attention.self", "layers.0.self_attn", "encoder.layer.1.attention"
T5_SELF = {stack: f"{stack}.block.1.layer.0.SelfAttention" for stack in ("encoder", "decoder")}
CROSS = "decoder.block.1.layer.1.EncDecAttention"
T5_PROJECTIONS = {
    f"{path}.{name}.weight": shape
    for path in (*T5_SELF.values(), CROSS)
    for name, shape in (("q", [24, 32]), ("k", [24, 32]), ("v", [24, 32]), ("o", [32, 24]))
}
PLANS: dict[str, dict[str, Any]] = {
    "bert": {
        "parameters": {
            **dense(24, *(f"{SELF}.{name}" for name in ("query", "key", "value"))),
            "encoder.layer.1.attention.output.dense.weight": [32, 24],
            **dense(40, "encoder.layer.0.intermediate.dense"),
            "encoder.layer.0.output.dense.weight": [32, 40],
        },
        "attributes": {SELF: {"num_attention_heads": 3, "all_head_size": 24}},
    },
    "mpnet": {
        "parameters": {
            **dense(16, *(f"{MPNET}.attn.{name}" for name in "qkv")),
            f"{MPNET}.attn.o.weight": [32, 16],
        },
        "attributes": {f"{MPNET}.attn": {"num_attention_heads": 2, "all_head_size": 16}},
        "arguments": {MPNET: {"position_bias": [1, 3]}},
    },
    "llama": {
        "parameters": {
            f"{ATTENTION}.q_proj.weight": [16, 32],
            f"{ATTENTION}.k_proj.weight": [8, 32],
            f"{ATTENTION}.v_proj.weight": [8, 32],
            f"{ATTENTION}.o_proj.weight": [32, 16],
            "layers.1.mlp.gate_proj.weight": [40, 32],
            "layers.1.mlp.up_proj.weight": [40, 32],
            "layers.1.mlp.down_proj.weight": [32, 40],
            "layers.1.mlp.down_proj.bias": [32],  # the stock model has none
        },
        "attributes": {"layers.1.mlp": {"intermediate_size": 40}},
    },
    "phi3": {
        "parameters": {f"{ATTENTION}.qkv_proj.weight": [32, 32], f"{ATTENTION}.o_proj.weight": [32, 16]},
        "attributes": {ATTENTION: {"num_key_value_heads": 1}},
        "settings": {ATTENTION: {"num_attention_heads": 2}},
    },
    "mixtral": {
        "parameters": {
            "layers.0.mlp.experts.gate_up_proj": [4, 64, 32],
            "layers.0.mlp.experts.down_proj": [4, 32, 32],
            "layers.1.mlp.gate.weight": [3, 32],
            "layers.1.mlp.experts.gate_up_proj": [3, 96, 32],
            "layers.1.mlp.experts.down_proj": [3, 32, 48],
        },
        "attributes": {
            "layers.0.mlp.experts": {"intermediate_dim": 32},
            "layers.1.mlp.experts": {"num_experts": 3},
            "layers.1.mlp.gate": {"num_experts": 3},
        },
    },
    "gpt2": {
        "parameters": {
            "h.0.attn.c_attn.weight": [32, 72],
            "h.0.attn.c_attn.bias": [72],
            "h.0.attn.c_proj.weight": [24, 32],
            "h.1.mlp.c_fc.weight": [32, 40],
            "h.1.mlp.c_fc.bias": [40],
            "h.1.mlp.c_proj.weight": [40, 32],
        },
        "attributes": {"h.0.attn": {"num_heads": 3, "split_size": 24}},
    },
    "t5": {
        "copies": {
            f"{path}.relative_attention_bias": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
            for stack, path in T5_SELF.items()
        },
        "parameters": {
            **T5_PROJECTIONS,
            **{f"{path}.relative_attention_bias.weight": [32, 3] for path in T5_SELF.values()},
            "encoder.block.0.layer.1.DenseReluDense.wi.weight": [40, 32],
            "encoder.block.0.layer.1.DenseReluDense.wo.weight": [32, 40],
        },
        "attributes": {
            **{
                path: {"n_heads": 3, "inner_dim": 24, "has_relative_attention_bias": True} for path in T5_SELF.values()
            },
            CROSS: {"n_heads": 3, "inner_dim": 24},
        },
        "arguments": {path: {"position_bias": None} for path in (*T5_SELF.values(), CROSS)},
    },
    "vit": {
        "parameters": {
            **dense(24, *(f"layers.1.attention.{name}_proj" for name in "qkv")),
            "layers.1.attention.o_proj.weight": [32, 24],
            **dense(40, "layers.0.mlp.fc1"),
            "layers.0.mlp.fc2.weight": [32, 40],
        },
        "attributes": {"layers.1.attention": {"num_attention_heads": 3}},
    },
}
FAMILIES = sorted(PLANS)
FORMAT_1 = {
    "format": 1,
    "modules": {
        "layers.0.mlp.gate_proj": [40, 32],
        "layers.0.mlp.up_proj": [40, 32],
        "layers.0.mlp.down_proj": [32, 40],
        "layers.1.mlp.down_proj": [32, 48],
    },
    "biases": ["layers.0.mlp.down_proj"],
    "attributes": {"layers.0.mlp": {"intermediate_size": 40}},
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    modeling_pruned.register(FAMILIES)


def plan_of(family: str) -> dict[str, Any]:
    return copy.deepcopy({"format": 3, **PLANS[family]})


def stock_model(family: str) -> PreTrainedModel:
    torch.manual_seed(moved(0))
    return AutoModel.from_config(AutoConfig.for_model(family, **CONFIGS[family])).eval()


def per_layer_config(family: str, plan: Any) -> Any:
    stock = type(AutoConfig.for_model(family))
    config = modeling_pruned.config_class(stock)(**CONFIGS[family], mabprune=plan)
    config.auto_map = modeling_pruned.auto_map(stock)
    return config


def per_layer_model(family: str, plan: Any = None, auto_class: str = "AutoModel") -> PreTrainedModel:
    """A random model with the sizes of a plan, none of whose parameters are what a constructor gives."""
    config = per_layer_config(family, plan or plan_of(family))
    torch.manual_seed(moved(0))
    model = getattr(transformers, auto_class).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loaded(folder: Path, auto_class: str = "AutoModel") -> PreTrainedModel:
    model = getattr(transformers, auto_class).from_pretrained(folder).eval()
    for parameter in model.parameters():  # mapped files begin anywhere, and products round by where a matrix begins
        parameter.data = parameter.data.clone()
    return model


def outputs_of(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(moved(1)))
    inputs = {"input_ids": ids}
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
    elif model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    with torch.no_grad():
        return model(**inputs)[0]


def shapes_of(model: nn.Module, planned: dict[str, Any]) -> dict[str, list[int]]:
    return {path: list(model.get_parameter(path).shape) for path in planned}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_gives_a_stock_model_its_sizes(family: str) -> None:
    model, plan = stock_model(family), plan_of(family)
    before = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    resize(model, plan)

    assert shapes_of(model, plan["parameters"]) == plan["parameters"]
    after = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert {name for name, shape in after.items() if before.get(name) != shape} <= plan["parameters"].keys()
    for path, attributes in plan["attributes"].items():
        assert {name: getattr(model.get_submodule(path), name) for name in attributes} == attributes
    assert outputs_of(model).isfinite().all()
    assert plan == plan_of(family), "the plan stays as it was"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_time_changes_nothing(family: str) -> None:
    model = per_layer_model(family)
    expected, parameters, hooks = outputs_of(model), list(model.parameters()), _hooks(model)
    resize(model.base_model, model.config.mabprune)

    assert all(mine is yours for mine, yours in zip(model.parameters(), parameters, strict=True))
    assert _hooks(model) == hooks
    assert torch.equal(outputs_of(model), expected)


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_without_a_difference_and_so_once_more(family: str, tmp_path: Path) -> None:
    model = per_layer_model(family)
    model.save_pretrained(tmp_path / "first", save_original_format=False)
    again = loaded(tmp_path / "first")
    again.save_pretrained(tmp_path / "second", save_original_format=False)
    config = json.loads((tmp_path / "second" / "config.json").read_text())

    assert type(again) is type(model) and isinstance(again, modeling_pruned.PerLayerModel)
    assert torch.equal(outputs_of(again), outputs_of(model))
    assert config["mabprune"] == plan_of(family)
    assert config["auto_map"]["AutoModel"] == f"modeling_pruned.{type(model).__name__}"
    source = Path(inspect.getfile(modeling_pruned)).read_text()
    assert (tmp_path / "second" / "modeling_pruned.py").read_text() == source


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_modules_say_their_sizes_themselves(family: str) -> None:
    model = per_layer_model(family)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert [module.out_features, module.in_features] == list(module.weight.shape)
        elif isinstance(module, modeling_pruned.Conv1D):
            assert [module.nx, module.nf] == list(module.weight.shape)
        elif isinstance(module, nn.Embedding):
            assert [module.num_embeddings, module.embedding_dim] == list(module.weight.shape)


def test_sizes_follow_where_only_parameters_were_cut() -> None:
    model = stock_model("bert")
    linear = model.encoder.layer[0].output.dense
    linear.weight = nn.Parameter(linear.weight[:, :40].detach())
    resize(model, plan_of("bert"))
    assert linear.in_features == 40


def test_under_the_meta_device_and_in_half_precision() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(per_layer_config("t5", plan_of("t5")), dtype=torch.bfloat16)
    assert {(parameter.dtype, parameter.device.type) for parameter in model.parameters()} == {(torch.bfloat16, "meta")}
    assert shapes_of(model, PLANS["t5"]["parameters"]) == PLANS["t5"]["parameters"]


def test_frozen_parameters_stay_frozen_and_a_resized_one_keeps_its_first_entries() -> None:
    model = stock_model("llama")
    model.layers[1].mlp.requires_grad_(False)
    up = model.layers[1].mlp.up_proj.weight.clone()
    resize(model, plan_of("llama"))
    mlp = model.layers[1].mlp

    assert not any(parameter.requires_grad for parameter in mlp.parameters())
    assert all(parameter.requires_grad for parameter in model.layers[0].parameters())
    assert torch.equal(mlp.up_proj.weight, up[:40])
    assert torch.equal(mlp.down_proj.bias, torch.zeros(32))


def test_copies_and_dropped_arguments_alone_change_nothing() -> None:
    model = stock_model("t5")
    expected = outputs_of(model)
    plan = plan_of("t5")
    del plan["parameters"]
    plan["attributes"] = {path: {"has_relative_attention_bias": True} for path in T5_SELF.values()}
    del plan["arguments"][CROSS]
    resize(model, plan)

    first, second = (block.layer[0].SelfAttention.relative_attention_bias for block in model.encoder.block)
    assert first is not second and torch.equal(first.weight, second.weight)
    assert torch.equal(outputs_of(model), expected)


def test_a_copy_may_be_larger_than_its_source_in_a_model_that_is_cut_already() -> None:
    plan = plan_of("t5")
    first = "encoder.block.0.layer.0.SelfAttention"
    plan["parameters"].update({f"{first}.{name}.weight": [16, 32] for name in "qkv"})
    plan["parameters"].update({f"{first}.o.weight": [32, 16], f"{first}.relative_attention_bias.weight": [32, 2]})
    plan["attributes"][first] = {"n_heads": 2, "inner_dim": 16}
    cut, whole = stock_model("t5"), stock_model("t5")
    bias = cut.get_submodule(first).relative_attention_bias
    bias.weight = nn.Parameter(bias.weight[:, :2].detach())
    for model in (cut, whole):
        resize(model, plan)
        assert shapes_of(model, plan["parameters"]) == plan["parameters"]


@pytest.mark.parametrize("by_name", [True, False])
def test_an_argument_is_selected_however_it_is_given(by_name: bool) -> None:
    model = stock_model("mpnet")
    resize(model, plan_of("mpnet"))
    attention, seen = model.get_submodule(MPNET), []
    attention.attn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    hidden, bias = torch.randn(1, 5, 32), torch.randn(1, 4, 5, 5)
    if by_name:
        attention(hidden, None, position_bias=bias)
    else:
        attention(hidden, None, bias)
    assert torch.equal(seen[0], bias[:, [1, 3]])


def test_a_module_with_settings_sees_what_the_config_says_later() -> None:
    model = per_layer_model("phi3")
    own, shared = model.get_submodule(ATTENTION).config, model.config
    assert (own.num_attention_heads, shared.num_attention_heads) == (2, 4)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert own._attn_implementation == shared._attn_implementation == implementation
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = own.no_such_field


@pytest.mark.parametrize("family", ["mpnet", "phi3"])
def test_a_copy_of_a_model_stands_alone(family: str) -> None:
    model = per_layer_model(family)
    again = copy.deepcopy(model)
    assert torch.equal(outputs_of(again), outputs_of(model))
    if family == "phi3":
        again.set_attn_implementation("eager")
        own = [each.get_submodule(ATTENTION).config._attn_implementation for each in (again, model)]
        assert own == ["eager", "sdpa"]


def test_settings_can_be_pickled() -> None:
    model = stock_model("phi3")  # a class that is made by name cannot
    resize(model, plan_of("phi3"))
    assert torch.equal(outputs_of(pickle.loads(pickle.dumps(model))), outputs_of(model))


@pytest.mark.parametrize("auto_class", ["AutoModelForTextEncoding", "AutoModelForTokenClassification"])
def test_a_head_without_one_of_the_stacks_takes_the_other(auto_class: str, tmp_path: Path) -> None:
    whole = per_layer_model("t5")
    whole.save_pretrained(tmp_path, save_original_format=False)
    encoder = loaded(tmp_path, auto_class).base_model
    ids = torch.arange(3, 10)[None]
    with torch.no_grad():
        assert torch.equal(encoder(input_ids=ids)[0], whole.encoder(input_ids=ids)[0])


def test_a_base_model_that_is_the_model_itself(tmp_path: Path) -> None:
    model = per_layer_model("t5", auto_class="AutoModelForSeq2SeqLM")
    assert model.base_model is model
    model.save_pretrained(tmp_path, save_original_format=False)
    again = loaded(tmp_path, "AutoModelForSeq2SeqLM")
    assert torch.equal(outputs_of(again), outputs_of(model))


def test_format_1_still_loads(tmp_path: Path) -> None:
    model = per_layer_model("llama", FORMAT_1)
    model.save_pretrained(tmp_path, save_original_format=False)
    again = loaded(tmp_path)

    first, second = (layer.mlp for layer in again.layers)
    assert (first.up_proj.out_features, first.down_proj.in_features, first.intermediate_size) == (40, 40, 40)
    assert first.down_proj.bias.shape == (32,) and first.up_proj.bias is None and second.down_proj.bias is None
    assert torch.equal(outputs_of(again), outputs_of(model))
    assert read_plan(FORMAT_1) == {
        "format": 3,
        "parameters": {
            **{f"{path}.weight": shape for path, shape in FORMAT_1["modules"].items()},
            "layers.0.mlp.down_proj.bias": [32],
        },
        "attributes": FORMAT_1["attributes"],
    }


def test_biases_that_the_stock_model_has_follow_in_format_1() -> None:
    plan = {"format": 1, "modules": {"encoder.layer.0.intermediate.dense": [40, 32]}}
    model = stock_model("bert")
    resize(model, plan)
    assert model.encoder.layer[0].intermediate.dense.bias.shape == (40,)


LATER = (
    "this checkpoint has hf_mabprune format 4, this file reads formats 1 to 3: update hf_mabprune, "
    "or load with trust_remote_code=True the file beside it"
)


def tampered(folder: Path, plan: Any) -> Path:
    """A checkpoint of the random stock model's weights, with a plan that it was not written with."""
    family = "llama"
    per_layer_model(family).save_pretrained(folder, save_original_format=False)
    config = json.loads((folder / "config.json").read_text())
    config["mabprune"] = plan
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("auto", [AutoConfig, AutoModel])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4, "what is new": {}}, LATER),
        ({"attributes": {"norm": {"eps": 1}}}, "mabprune.attributes['norm']: 'eps' is none of all_head_size, dim"),
    ],
)
def test_what_cannot_be_read_is_refused_wherever_a_checkpoint_is_opened(
    auto: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as refusal:
        auto.from_pretrained(tampered(tmp_path, {**plan_of("llama"), **changes}))
    assert str(refusal.value).startswith(message)


def test_a_later_format_is_refused_on_construction_and_a_changed_plan_with_the_model() -> None:
    with pytest.raises(ValueError, match="hf_mabprune format 4"):
        per_layer_config("bert", {"format": 4})
    config = per_layer_config("bert", plan_of("bert"))
    config.mabprune["format"] = 4
    with pytest.raises(ValueError, match="hf_mabprune format 4"):
        AutoModel.from_config(config)


MLP, UP = "layers.1.mlp", "layers.1.mlp.up_proj.weight"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
OWN = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias"
WHOLE_LAYER = {
    f"layers.1.{name}_proj.weight": [32, 0] if name in ("self_attn.o", "mlp.down") else [0, 32]
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
}
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"format": None}, "format: must be 1, 2 or 3, got None"),
    ("llama", {"format": True}, "format: must be 1, 2 or 3, got True"),
    ("llama", {"format": "2"}, "format: must be 1, 2 or 3, got '2'"),
    ("llama", {"modules\n": {}}, r"'modules\\n': format 3 has parameters, attributes"),
    ("llama", {"parameters": {"." * 201: [1]}}, "names of up to 200 letters"),
    ("llama", {"parameters": [UP]}, r"parameters: must be a mapping.* got \['layers"),
    ("llama", {"parameters": {UP: [0, 32]}}, r"parameters\['layers.1.mlp.up_proj.weight'\]: must be a shape"),
    ("llama", {"parameters": {UP: [True, 32]}}, "positive integers, got"),
    ("llama", {"parameters": {UP: [40.0, 32]}}, "positive integers, got"),
    ("llama", {"parameters": {UP: "40"}}, "positive integers, got '40'"),
    ("llama", {"parameters": {UP: []}}, "shape of 1 to 4"),
    ("llama", {"parameters": {UP: [1, 1, 1, 1, 1]}}, "shape of 1 to 4"),
    ("llama", {"parameters": {UP: [40]}}, r"must be no larger than \[48, 32\], got \[40\]"),
    ("llama", {"parameters": {UP: [49, 32]}}, r"must be no larger than \[48, 32\], got \[49, 32\]"),
    ("llama", {"parameters": {UP: [10**12, 32]}}, "must be no larger than"),
    ("llama", {"parameters": {"layers.9.mlp.up_proj.weight": [40, 32]}}, "LlamaModel of .* has no such module"),
    ("llama", {"parameters": {"nowhere.weight": [40, 32]}}, r"\['nowhere'\]: .* has no such module"),
    ("llama", {"parameters": {"layers.0.mlp.up_proj.__class__": [40, 32]}}, "Linear has no such parameter"),
    ("llama", {"parameters": {"layers.0.mlp.gate_proj.bias": [49]}}, r"must be \[48\], as the weight says, got"),
    ("llama", {"parameters": {"norm.bias": [32]}}, "LlamaRMSNorm has no such parameter"),
    ("vit", {"parameters": {"layers.0.mlp.fc1.bias": [39]}}, r"must be \[40\], as the weight says"),
    ("llama", {"attributes": {MLP: {"training": 40}}}, "'training' is none of all_head_size, dim"),
    ("llama", {"attributes": {MLP: {"forward": 40}}}, "'forward' is none of"),
    ("llama", {"attributes": {"norm": {"intermediate_size": 8}}}, "a dimension of a planned parameter.* got 8"),
    ("llama", {"attributes": {MLP: 40}}, r"attributes\['layers.1.mlp'\]: must be a mapping.* got 40"),
    ("llama", {"attributes": {MLP: {"intermediate_size": 41}}}, "or divide one, got 41"),
    ("llama", {"attributes": {MLP: {"intermediate_size": -40}}}, "or divide one, got -40"),
    ("llama", {"attributes": {MLP: {"intermediate_size": True}}}, "or divide one, got True"),
    ("llama", {"attributes": {MLP: {"intermediate_size": "40"}}}, "or divide one, got '40'"),
    ("llama", {"attributes": {ATTENTION: {"has_relative_attention_bias": False}}}, "can only be true, got False"),
    ("llama", {"attributes": {ATTENTION: {"has_relative_attention_bias": True}}}, "nothing that has_relative"),
    ("bert", {"attributes": {SELF: {"num_attention_heads": 8}}}, "must be no larger than 4, got 8"),
    ("phi3", {"settings": {ATTENTION: {"_attn_implementation": 1}}}, "'_attn_implementation' is none of num_att"),
    ("phi3", {"settings": {ATTENTION: {"num_attention_heads": 5}}}, "settings.*or divide one, got 5"),
    ("phi3", {"settings": {ATTENTION: {"num_attention_heads": 32}}}, "must be no larger than 4, got 32"),
    ("llama", {"settings": {"layers.1.mlp.up_proj": {"num_attention_heads": 2}}}, "nothing that num_attention_heads"),
    ("mpnet", {"arguments": {MPNET: {"hidden_states": None}}}, "'hidden_states' is none of position_bias"),
    ("mpnet", {"arguments": {MPNET: {"position_bias": [-1]}}}, r"null or indices from 0 on, each once, got \[-1\]"),
    ("mpnet", {"arguments": {MPNET: {"position_bias": [1, 1]}}}, "each once"),
    ("mpnet", {"arguments": {MPNET: {"position_bias": []}}}, "each once"),
    ("llama", {"arguments": {ATTENTION: {"position_bias": None}}}, "LlamaAttention has no position_bias"),
    ("t5", {"copies": {"encoder.block.1.extra": "encoder.block"}}, "only relative_attention_bias can be copied"),
    ("t5", {"copies": {OWN: "encoder.block.0"}}, "only relative_attention_bias can be copied, got 'encoder.block.0'"),
    ("t5", {"copies": {OWN: 1}}, "only relative_attention_bias can be copied, got 1"),
    ("t5", {"copies": {"encoder.final_layer_norm.relative_attention_bias": BIAS}}, "in a module of another class"),
    ("t5", {"copies": {OWN: OWN}}, "has no such module"),
    ("t5", {"parameters": {f"{OWN}.weight": [32, 10**9]}}, r"must be no larger than \[32, 4\]"),
    ("llama", {"parameters": {UP: [10**5000, 32]}}, "must be no larger than"),
    ("llama", {"parameters": {UP: [float("nan"), 32]}}, "positive integers, got"),
    ("llama", {"parameters": {UP: [[40], 32]}}, "positive integers, got"),
    ("llama", {"parameters": {UP: [1] * 10**6}}, "shape of 1 to 4"),
    ("llama", {"parameters": {f"layers.{number}.mlp": [1] for number in range(5000)}}, "has no such"),
    ("llama", {"parameters": {"norm.weight": [16]}}, "the weights of a norm are never cut, got"),
    ("bert", {"parameters": {"encoder.layer.0.output.LayerNorm.weight": [16]}}, "a LayerNorm is never cut"),
    ("bert", {"parameters": {"encoder.layer.0.output.LayerNorm.bias": [16]}}, "a LayerNorm is never cut"),
    ("bert", {"parameters": {"embeddings.word_embeddings.weight": [40, 32]}}, "an Embedding keeps its 64 rows"),
    ("bert", {"parameters": {"embeddings.position_embeddings.weight": [8, 32]}}, "an Embedding keeps its 64 rows"),
    ("t5", {"parameters": {f"{BIAS}.weight": [16, 4]}}, "an Embedding keeps its 32 rows"),
    ("t5", {"attributes": {CROSS: {"n_heads": 1}}}, "n_heads goes from 4 to 1, and no planned parameter in that mod"),
    ("bert", {"attributes": {SELF: {"num_attention_heads": 2}}}, "num_attention_heads goes from 4 to 2, and no"),
    ("gpt2", {"attributes": {"h.0.attn": {"split_size": 8}}}, "split_size goes from 32 to 8, and no planned"),
    ("phi3", {"settings": {ATTENTION: {"num_attention_heads": 1}}}, "num_attention_heads goes from 4 to 1, and no"),
    ("llama", {"attributes": {MLP: {"num_heads": 40}}}, "the module has nothing that num_heads could tell of"),
    ("mpnet", {"arguments": {MPNET: {"position_bias": [1, 4]}}}, "position_bias has 4 entries, got 4"),
    ("mpnet", {"arguments": {MPNET: {"position_bias": [1, 10**5000]}}}, "position_bias has 4 entries, got a int"),
    ("mpnet", {"arguments": {MPNET: {"position_bias": float("nan")}}}, "null or indices from 0 on"),
    ("llama", {"format": 2, "empty": {}}, "'empty': format 2 has parameters, attributes"),
    ("llama", {"empty": {MLP: 0}}, "must be the number of outputs, 1 to 3, got 0"),
    ("llama", {"empty": {MLP: True}}, "must be the number of outputs, 1 to 3, got True"),
    ("llama", {"empty": {MLP: 1}}, "no planned parameter in that module has a size of 0"),
    ("llama", {"empty": {"": 1}, "parameters": {UP: [0, 32]}}, "must be a shape of 1 to 4 positive integers"),
    ("llama", {"empty": {MLP: 1}, "parameters": {UP: [-1, 32]}}, "must be a shape of 1 to 4 positive integers"),
    ("llama", {"empty": {MLP: 1}, "parameters": {UP: [0, 32]}}, "a LlamaMLP with weights left, .* is not"),
    ("llama", {"empty": {"norm": 1}, "parameters": {"norm.weight": [0]}}, "the weights of a norm are never cut"),
    (
        "llama",
        {"empty": {"layers.1": 1}, "parameters": WHOLE_LAYER, "attributes": {MLP: {"intermediate_size": 48}}},
        "several projections are in it, ",
    ),
]


@pytest.mark.parametrize(("family", "changes", "message"), HOSTILE)
def test_a_plan_that_no_cut_writes_is_refused_in_one_line(family: str, changes: dict[str, Any], message: str) -> None:
    plan = plan_of(family)
    for key, value in changes.items():
        plan[key] = {**plan.get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message) as refusal:
        per_layer_model(family, plan)
    assert str(refusal.value).startswith("mabprune.") and "\n" not in str(refusal.value)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


ENDLESS = {
    "lists": nested(10**4),
    "digits": 10**5000,
    "mapping": {"a": nested(10**4)},
    "nan": float("nan"),
    "letters": "x" * 10**6,
}


@pytest.mark.parametrize("value", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("key", ["format", "parameters", "attributes", "settings", "arguments", "copies", "empty"])
def test_what_cannot_even_be_written_out_is_refused_in_a_short_line(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^mabprune\.|^this checkpoint has hf_mabprune format a int") as refusal:
        read_plan({**plan_of("t5"), key: value})
    assert len(str(refusal.value)) < 300 and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "fields",
    [
        {0: {"sliding_window": 4}},
        {0: {"attention_chunk_size": 4}},
        {0: {"intermediate_size": -1}},
        {0: {"intermediate_size": True}},
        {0: {"rms_norm_eps": 1e6}},
        {0: {"skip": ["mlp"]}},
        {0: 3},
        [0],
        3,
    ],
)
def test_sizes_by_layer_say_sizes_and_nothing_else(fields: Any) -> None:
    stock = type(AutoConfig.for_model("llama"))
    with pytest.raises(ValueError, match=r"^per_layer_config\[.*must be mappings from layers to sizes >= 0"):
        modeling_pruned.config_class(stock)(**CONFIGS["llama"], mabprune=plan_of("llama"), per_layer_config=fields)


@pytest.mark.parametrize("plan", [{}, [], "2", 2, {"format": 1, "parameters": {}}, {1: 2}])
def test_what_is_no_plan_is_refused(plan: Any) -> None:
    with pytest.raises(ValueError, match=r"^mabprune"):
        per_layer_config("bert", plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": {"layers.0.mlp.up_proj": 40}}, r"mabprune.modules\['layers.0.mlp.up_proj'\]: must be \[outputs"),
        ({"biases": ["norm"]}, r"mabprune.biases: must be paths that modules has, got \['norm'\]"),
        ({"biases": {"norm": []}}, "must be paths that modules has"),
        ({"biases": [["norm"]]}, "must be paths that modules has"),
        ({"attributes": {"norm": {"variance_epsilon": 1}}}, "'variance_epsilon' is none of"),
    ],
)
def test_format_1_is_checked_as_well(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_plan({**FORMAT_1, **changes})


def test_only_models_and_configs_have_classes_by_name() -> None:
    for name in ("MabprunePipeline", "MabpruneAutoConfig", "Mabprune", "MabpruneNoSuchModel", "Mabprunelogging"):
        with pytest.raises(AttributeError, match=name):
            getattr(modeling_pruned, name)


@pytest.mark.whole
def test_where_the_package_is_not_the_file_beside_the_weights_does_the_same(tmp_path: Path) -> None:
    asked, expected = [], []
    for family in ("bert", "t5"):
        model = per_layer_model(family)
        model.save_pretrained(tmp_path / family, save_original_format=False)
        inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
        if family == "t5":
            inputs["decoder_input_ids"] = torch.tensor([[9, 10, 11]])
        asked.append(("AutoModel", tmp_path / family, inputs))
        with torch.no_grad():
            expected.append(("transformers_modules", model(**inputs)[0].flatten().tolist()))
    asked.append(("AutoModel", tampered(tmp_path / "later", {"format": 4}), {}))
    eps = {**plan_of("llama"), "attributes": {"norm": {"eps": 1}}}
    asked.append(("AutoModel", tampered(tmp_path / "eps", eps), {}))
    found = loaded_outside(asked, tmp_path)
    assert found[:2] == expected, "0.0 difference"
    assert found[2][0] == "refused" and found[2][1].startswith(LATER)
    assert found[3][0] == "refused" and found[3][1].startswith("mabprune.attributes['norm']: 'eps' is none of")
