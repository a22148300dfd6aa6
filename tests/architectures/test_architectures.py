"""The contract of a model family, over every registered type: the sites that it declares are those of its models."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.architectures.projections import cuts, rows_of
from hf_mabprune.architectures.sites import GROUPS, UNITS, Site, members, part_at
from hf_mabprune.effects.masking import masked
from hf_mabprune.effects.routes import routes
from hf_mabprune.effects.taps import tapped
from hf_mabprune.surgery.cut import cut
from tests.architectures.variants import (
    TYPES,
    experts_by_layer,
    model_of,
    one_example,
    shared_experts,
    sites_by_layer,
    sites_of,
    variants,
)
from tests.seeds import moved
from tests.tiny_models import inputs_for, keep_for, tiny_model
from tests.tiny_sizes import LAYERS, WIDTH

KEYS_AND_VALUES = ("self_attn.k_proj", "self_attn.v_proj")


@torch.no_grad()
def run(model: PreTrainedModel) -> None:
    model(**inputs_for(model))


@variants
def test_sites_come_in_the_order_in_which_they_run(model_type: str, changes: dict[str, Any]) -> None:
    model = model_of(model_type, **changes)
    found = Counter((site.kind, site.depth) for site in sites_of(model))
    if model.config.is_encoder_decoder:
        decoder = range(len(sites_by_layer(model)) - LAYERS)
        assert [layer.number for layer in architecture_of(model).layers(model)] == [0, 1, *decoder]
    layers = sites_by_layer(model)
    routed = [*experts_by_layer(model), *[0] * len(layers)]
    grouped = (getattr(model.config, "n_group", None) or 1) > 1
    for depth, ((heads, ffns), experts) in enumerate(zip(layers, routed, strict=False)):
        assert found.pop(("head", depth), 0) == heads
        assert found.pop(("neuron", depth)) == experts + ffns
        assert found.pop(("expert", depth), 0) == (experts > 0 and not grouped)
    assert not found
    depths = [site.depth for site in sites_of(model)]
    assert depths == sorted(depths)


@variants
def test_a_site_has_the_path_of_its_projection_for_a_name_of_its_own(model_type: str, changes: dict[str, Any]) -> None:
    model = model_of(model_type, **changes)
    sites = sites_of(model)
    assert len({site.name for site in sites}) == len(sites)
    for site in sites:
        if site.expert is None:
            assert isinstance(model.base_model.get_submodule(site.name), nn.Module)
        else:
            experts, number = site.name.rsplit(".", 1)
            assert site.expert == int(number) < len(model.base_model.get_submodule(experts).down_proj)
            assert site.tie == experts
    ties = Counter(site.tie for site in sites if site.tie)
    assert set(ties.values()) <= set(experts_by_layer(model))


@variants
def test_sites_have_the_sizes_of_their_modules(model_type: str, changes: dict[str, Any]) -> None:
    model = model_of(model_type, **changes)
    base = model.base_model
    width = 4 * 32 if changes.get("n_inner", 0) is None else 64 if (model_type, changes) == ("dinov2", {}) else WIDTH
    experts = max(experts_by_layer(model), default=0)
    said = not {"n_inner", "block_auto_adjust_ff_dim"} & changes.keys()  # else the number follows from what is said
    for site in sites_of(model):
        config = site.stack.config_of(model.config)
        own = (
            changes.get("moe_intermediate_size", width) if site.expert is not None or site.kind == "expert" else width
        )
        own *= shared_experts(model) if site.name.endswith("shared_experts.down_proj") else 1
        assert site.units == {"neuron": own, "head": config.num_attention_heads, "expert": experts}[site.kind]
        assert not site.spec.units or not said or site.units == getattr(config, site.spec.units)
        assert site.units % site.group == 0
        weight = projection_of(model, site).weight
        if site.kind == "expert":
            assert weight.shape == (config.hidden_size, experts * own)
        else:
            assert weight.shape == (config.hidden_size, site.columns)
        for path, names in site.spec.attributes.items():
            module = base.get_submodule(site.prefix + path)
            for name, size in names.items():
                if isinstance(size, str):
                    assert getattr(module, name) == site.sizes(site.units)[size], f"{path}.{name}"


@variants
def test_cuts_are_all_that_goes_with_units(model_type: str, changes: dict[str, Any]) -> None:
    model = model_of(model_type, **changes)
    base = model.base_model
    for site in sites_of(model):
        whole = list(cuts(base, site, np.arange(site.units)))
        fewer = list(cuts(base, site, np.arange(site.group, site.units)))
        assert len(whole) == len(fewer) > 1
        for all_of_it, rest in zip(whole, fewer, strict=True):
            if all_of_it.source:
                continue  # a copy, which is not there yet
            size = part_at(base, all_of_it.path).shape[all_of_it.dim]
            assert all_of_it.index.tolist() == list(range(size)), all_of_it.path
            stays = site.shared and all_of_it.path.removeprefix(site.prefix).startswith(KEYS_AND_VALUES)
            fused = site.shared and "qkv" in all_of_it.path  # one key and one value head in it stay
            size, stay = (size - 2 * site.unit_size, 2 * site.unit_size) if fused else (size, 0)
            going = 0 if stays else site.group
            assert (len(rest.index) - stay) * site.units == size * (site.units - going), rest.path
            assert np.isin(rest.index, all_of_it.index).all() and (np.diff(rest.index) > 0).all()
        for rows in site.spec.rows:  # as many for one unit as for another
            count = {UNITS: site.units, GROUPS: site.units // site.group}
            parts = [part for part in rows.parts if part == UNITS or not site.shared]
            path = site.inside + rows.path
            blocks = [each for each in rows_of(base, site) if each.path.removesuffix(".weight") == path]
            counts = [count[part] for part in parts]
            counts = [sum(counts)] if rows.interleaved else counts
            sizes = {len(block.index) / units for block, units in zip(blocks, counts, strict=bool(blocks))}
            assert len(sizes) <= 1 and all(size == int(size) for size in sizes)
            made = np.concatenate([block.index for block in blocks]) if blocks else np.empty(0, dtype=int)
            assert made.tolist() == list(range(len(made)))


@variants
def test_a_block_gives_what_the_projection_makes_of_its_inputs(model_type: str, changes: dict[str, Any]) -> None:
    """For each site the output of its block is W h + b of the h that taps see; of experts, the sum of all."""
    model = model_of(model_type, **changes)
    sites, seen, given = sites_of(model), {}, {}

    def see(name: str) -> Any:
        return lambda hidden: seen.setdefault(name, hidden)

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            given[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for block in {site.block for site in sites}:
        model.base_model.get_submodule(block).register_forward_hook(keep(block))
    routers = [site for site in sites if site.kind == "expert"]
    with (
        tapped(model, {site.name: see(site.name) for site in sites if site.kind != "expert"}),
        routes(model, routers) as said,
    ):
        run(model)
    blocks: dict[str, list[Site]] = {}
    for site in sites:
        if site.kind != "expert":
            blocks.setdefault(site.block, []).append(site)
    assert blocks.keys() == {site.block for site in sites}
    for block, own in blocks.items():
        made: Any = 0
        for site in own:
            weight, bias = projection_of(model, site).float64()
            assert seen[site.name].shape[0] == 2 and seen[site.name].shape[2] == site.columns
            made = made + seen[site.name].double() @ weight.T + bias
        for router in routers if own[0].expert is not None else ():
            if members(router, sites) == own:
                made = made.flatten(0, 1) + said[router.name].from_biases()
        assert (made.reshape(given[block].shape) - given[block]).abs().max() < 1e-5


def test_the_experts_behind_a_router_are_its_members() -> None:
    model = model_of("mixtral")
    sites = sites_of(model)
    for router in (site for site in sites if site.kind == "expert"):
        own = members(router, sites)
        assert [site.name for site in own] == [f"layers.{router.layer}.mlp.experts.{number}" for number in range(4)]
        behind, weight = projection_of(model, router), projection_of(model, router).weight
        assert torch.equal(weight, torch.cat([projection_of(model, site).weight for site in own], 1))
        assert behind.module is None and behind.bias is None
    assert members(sites[0], sites) == [sites[0]]


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "mixtral"])
def test_a_projection_is_read_and_written_in_one_orientation(model_type: str) -> None:
    model = model_of(model_type)
    for site in sites_of(model):
        projection = projection_of(model, site)
        new = torch.randn(projection.weight.shape, generator=torch.Generator().manual_seed(moved(5)))
        projection.write(new)
        assert torch.equal(projection_of(model, site).weight, new)
        if projection.module is None:
            with pytest.raises(ValueError, match="experts takes no bias"):
                projection.write_bias(torch.ones(32))
            continue
        for bias in (torch.arange(32.0), None, 2 * torch.arange(32.0)):
            projection.write_bias(bias)
            left = projection.float64()[1]
            assert torch.equal(left, torch.zeros(32).double() if bias is None else bias.double())
            assert (projection.bias is None) == (bias is None)


@variants
def test_what_runs_before_a_site_does_not_see_its_mask(model_type: str, changes: dict[str, Any]) -> None:
    model = model_of(model_type, **changes)
    site = next(site for site in sites_of(model) if site.kind == "neuron")
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            seen.setdefault(path, []).append(output[0].detach().clone())

        return hook

    if architecture_of(model).shares_layers(model):
        pytest.skip("what runs in a layer that is shared sees the mask in the runs of that layer after the first")
    for layer in architecture_of(model).layers(model)[:2]:
        for path in (f"{layer.path}.{each}" for each in site.spec.before):
            if part_at(model.base_model, path) is not None:
                model.base_model.get_submodule(path).register_forward_hook(keep(path))
    own, others = {other.name for other in sites_of(model) if other.depth == 0 and other.spec is site.spec}, site.units
    mask = torch.ones(others)
    mask[: others - 8] = 0
    run(model)
    with masked(model, masks={name: mask for name in own}):
        run(model)
    first, _ = (f"{layer.path}." for layer in architecture_of(model).layers(model)[:2])
    assert {path.startswith(first) for path in seen} == {True, False}
    for path, (plain, with_mask) in seen.items():
        assert torch.equal(plain, with_mask) == path.startswith(first), "the next layer's attention does change"


@pytest.mark.parametrize("model_type", TYPES)
def test_a_pruned_model_is_of_the_same_family_with_its_new_sizes(model_type: str) -> None:
    model = model_of(model_type)
    keep = keep_for(model, "per_layer", kinds=["neuron", "head"])
    small = cut(model, keep, "per_layer")
    assert type(architecture_of(small)) is type(architecture_of(model))
    assert {site.name: site.units for site in sites_of(small)} == {
        site.name: len(keep.get(site.name, range(site.units))) for site in sites_of(model)
    }
    groups = [(site.name, site.unit_size, site.group) for site in sites_of(model)]
    assert [(site.name, site.unit_size, site.group) for site in sites_of(small)] == groups


@pytest.mark.parametrize(
    ("head", "stacks"), [("AutoModelForTextEncoding", {"encoder"}), ("AutoModelForSeq2SeqLM", {"encoder", "decoder"})]
)
def test_stacks_that_a_model_lacks_are_skipped(head: str, stacks: set[str]) -> None:
    model = tiny_model("t5", head)
    assert {site.name.partition(".")[0] for site in sites_of(model)} == stacks
    assert [layer.depth for layer in architecture_of(model).layers(model)] == list(range(LAYERS * len(stacks)))
    assert {site.stack.flag for site in sites_of(model)} == {
        "attention_mask" if stack == "encoder" else "decoder_attention_mask" for stack in stacks
    }


def test_a_decoder_that_reads_an_encoder_has_two_attentions_a_layer() -> None:
    names = [site.name for site in sites_of(model_of("t5")) if site.depth == LAYERS]
    assert names == [
        "decoder.block.0.layer.0.SelfAttention.o",
        "decoder.block.0.layer.1.EncDecAttention.o",
        "decoder.block.0.layer.2.DenseReluDense.wo",
    ]


@pytest.mark.parametrize("model_type", ["bloom", "xglm"])
def test_other_types_are_refused_with_the_supported_ones(model_type: str) -> None:
    small = dict.fromkeys(("hidden_size", "d_model", "ffn_dim", "vocab_size"), 8)
    small |= dict.fromkeys(("n_layer", "n_head", "num_layers", "attention_heads"), 1)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, pad_token_id=0, **small))
    with pytest.raises(ValueError) as error:
        architecture_of(model)
    assert f"model type '{model_type}' is not supported yet" in str(error.value)
    assert str(error.value).endswith(f"Supported: {', '.join(TYPES)}")


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("olmo2", {}, "q_norm and k_norm run over all heads together"),
        ("olmo3", {}, "q_norm and k_norm run over all heads together"),
        ("olmoe", {}, "q_norm and k_norm run over all heads together"),
        ("stablelm", {"qk_layernorm": True}, "each head has a norm that is a module of its own (qk_layernorm)"),
    ],
)
def test_heads_that_stay_whole_are_refused_with_the_reason(
    model_type: str, changes: dict[str, Any], reason: str
) -> None:
    model = model_of(model_type, **changes)
    assert architecture_of(model).kept_whole(model) == {"head": reason}
    with pytest.raises(ValueError) as error:
        arm_table(model, ["head"], 1, one_example(model))
    assert str(error.value) == f"the model has no heads that can be cut: {reason}"
    assert arm_table(model, ["neuron", "head"], 1, one_example(model)).kinds() == ["neuron"]


def test_an_encoder_that_is_not_read_has_no_arms() -> None:
    model = tiny_model("bart", "AutoModelForCausalLM")
    assert {site.name.rpartition(".")[0].rpartition(".")[2] for site in sites_of(model)} == {"self_attn", "0", "1"}
    assert architecture_of(model).kept_whole(model) == {"head": "no encoder is read"}


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


def test_projections_of_an_unknown_kind_are_refused() -> None:
    model = model_of("llama")
    model.base_model.layers[1].mlp.down_proj = nn.Identity()
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj is a Identity, which cannot be cut: Linear and C"):
        sites_of(model)
