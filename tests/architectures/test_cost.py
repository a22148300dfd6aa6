"""What arms cost, over every registered type: the parameters and multiply-accumulates that surgery removes."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_mabprune.architectures.cost import arm_table, count_macs, count_parameters, parameters_after
from hf_mabprune.arms import ArmTable, Ints
from hf_mabprune.surgery.configs import touched
from hf_mabprune.surgery.cut import cut, kept_units
from tests.architectures.variants import TYPES, model_of, one_example, sites_by_layer, sites_of, variants
from tests.seeds import moved
from tests.tiny_models import keep_for
from tests.tiny_sizes import EXPERTS, HEADS, LAYERS, WIDTH

BUCKETS = 32  # of the position biases of T5, a row of their table each


def table_of(model: PreTrainedModel, kinds: Iterable[str], block: int = 16) -> ArmTable:
    return arm_table(model, list(kinds), block, one_example(model))


def that_go_with(model: PreTrainedModel, arms: ArmTable, arm: int) -> Ints:
    """An arm, and those of the same number in the other experts of its layer, which keep one width."""
    ties = {site.name: site.tie or site.name for site in sites_of(model)}
    tie = np.array([ties[name] for name in arms.site])
    return np.flatnonzero((tie == tie[arm]) & (arms.index == arms.index[arm]))


def copied(small: PreTrainedModel) -> int:
    """Parameters of the tables of position biases that a cut gave to other layers than the first, a column a head."""
    paths = (small.config.mabprune or {}).get("copies", {})
    units = {site.name: site.units for site in sites_of(small)}
    return sum(BUCKETS * units[path.replace("relative_attention_bias", "o")] for path in paths)


@variants
def test_an_arm_costs_what_surgery_removes(model_type: str, changes: dict[str, object]) -> None:
    model = model_of(model_type, **changes)
    example = one_example(model)
    arms = table_of(model, ["neuron", "head"], 20)
    widths = [arms.stop[rows].max() for _, rows in arms.groups() if arms.kind[rows[0]] == "neuron"]
    assert set(arms.units[arms.of_kind("neuron")].tolist()) == {20, *(width % 20 for width in widths)}
    parameters, macs = count_parameters(model), count_macs(model, example)
    first_and_last = [rows[[0, -1]] if arms.layer[rows[0]] == 0 else rows[-1:] for _, rows in arms.groups()]
    for going in {tuple(that_go_with(model, arms, arm)) for arm in np.concatenate(first_and_last)}:
        rows = np.array(going)
        small = cut(model, arms.kept_units(~np.isin(np.arange(len(arms)), rows)), "per_layer")
        left, grown = count_parameters(small), copied(small)
        assert (grown > 0) == (arms.kind[rows[0]] == "head" and shares_biases(model, arms.site[rows[0]]))
        assert parameters["parameters"] - left["parameters"] == arms.parameters[rows].sum() - grown
        part = "ffn_parameters" if arms.kind[rows[0]] == "neuron" else "attention_parameters"
        assert parameters[part] - left[part] == arms.parameters[rows].sum() - grown
        assert macs - count_macs(small, example) == arms.macs[rows].sum()


def shares_biases(model: PreTrainedModel, name: str) -> bool:
    """Whether a head is in a self-attention of T5 of which other layers use the position biases of the first."""
    spec = next(site.spec for site in sites_of(model) if site.name == name)
    return bool(spec.copies) and any(site.layer > 0 for site in sites_of(model) if site.spec is spec)


@pytest.mark.parametrize("routed", [1, 2, 3])
def test_an_expert_costs_its_weights_and_the_product_of_its_row_in_the_router(routed: int) -> None:
    model = model_of("mixtral", num_experts_per_tok=routed)
    example = one_example(model)
    arms = table_of(model, ["expert"])
    parameters, macs = count_parameters(model), count_macs(model, example)
    assert arms.kind.tolist() == ["expert"] * LAYERS * EXPERTS
    assert set(arms.parameters.tolist()) == {3 * 32 * WIDTH + 32}
    assert set(arms.macs.tolist()) == {9 * 32}
    for arm in range(len(arms)):
        small = cut(model, arms.kept_units(np.arange(len(arms)) != arm), "per_layer")
        left = count_parameters(small)
        assert parameters["parameters"] - left["parameters"] == arms.parameters[arm]
        assert parameters["ffn_parameters"] - left["ffn_parameters"] == arms.parameters[arm]
        assert macs - count_macs(small, example) == arms.macs[arm], "tokens of an expert that goes are sent to others"


@pytest.mark.parametrize("kinds", [("neuron", "head"), ("head", "expert")])
@pytest.mark.parametrize("model_type", TYPES)
def test_costs_add_up(model_type: str, kinds: tuple[str, ...]) -> None:
    model = model_of(model_type)
    if not {site.kind for site in sites_of(model)} & set(kinds):
        pytest.skip("no units of these kinds can go")
    example = one_example(model)
    arms = table_of(model, kinds)
    kept = np.random.default_rng(moved(3)).random(len(arms)) < 0.5
    kept[[row for _, rows in arms.groups() for row in rows[: 2 if arms.kind[rows[0]] == "expert" else 1]]] = True
    kept[-1] = False
    for arm in range(len(arms)):
        kept[that_go_with(model, arms, arm)] = kept[arm]
    small = cut(model, arms.kept_units(kept), "per_layer")
    before, after = count_parameters(model), count_parameters(small)
    assert before["parameters"] - after["parameters"] == arms.parameters[~kept].sum() - copied(small)
    assert count_macs(model, example) - count_macs(small, example) == arms.macs[~kept].sum()


def test_a_table_of_position_biases_for_every_layer_is_what_t5_gains() -> None:
    model = model_of("t5", num_layers=3)
    keep = {"encoder.block.1.layer.0.SelfAttention.o": np.array([0, 3])}
    small = cut(model, keep, "per_layer")
    arms = table_of(model, ["head"])
    cost = arms.parameters[arms.site == "encoder.block.1.layer.0.SelfAttention.o"]
    assert cost.tolist() == [4 * 8 * 32] * HEADS
    gained = BUCKETS * 2 + BUCKETS * HEADS  # the layer that is cut, and the one behind it
    assert sum(p.numel() for p in small.parameters()) - sum(p.numel() for p in model.parameters()) == (
        gained - 2 * 4 * 8 * 32
    )


@variants
def test_macs_are_those_that_torch_counts_of_an_eager_model(model_type: str, changes: dict[str, object]) -> None:
    model = model_of(model_type, **changes)
    attention, experts = model.config._attn_implementation, model.config._experts_implementation
    found = count_macs(model, one_example(model))
    assert (model.config._attn_implementation, model.config._experts_implementation) == (attention, experts)
    model.set_attn_implementation("eager")
    if experts is not None:
        model.set_experts_implementation("eager")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**one_example(model))
    assert 2 * found == counter.get_total_flops() > 0


# A neuron: a row of 32 weights with its bias, and a column of 32. A head of 8: three times 8 rows, and 8 columns.
PLAIN = {"neuron": {32 + 1 + 32}, "head": {3 * 8 * (32 + 1) + 8 * 32}}
# Gated: two rows and a column a neuron. A group: two query heads of 8, one key and one value head, output columns.
GATED = {"neuron": {3 * 32}, "head": {(16 + 8 + 8 + 16) * 32}}


def plain_macs(tokens: int) -> dict[str, set[int]]:
    return {"neuron": {64 * tokens}, "head": {4 * 8 * 32 * tokens + 2 * tokens * tokens * 8}}


@pytest.mark.parametrize(
    ("model_type", "parameters", "macs"),
    [
        ("bert", PLAIN, plain_macs(9)),
        ("gpt2", PLAIN, plain_macs(9)),
        ("vit", PLAIN, plain_macs(17)),  # 16 patches and one that stands for the image
        ("llama", GATED, {"neuron": {96 * 9}, "head": {48 * 32 * 9 + 2 * 9 * 9 * 16}}),
        # Two of four experts a token, so half a token an expert.
        ("mixtral", GATED, {"neuron": {96 * 9 // 2}, "head": {48 * 32 * 9 + 2 * 9 * 9 * 16}}),
        (
            "t5",
            {"neuron": {64}, "head": {4 * 8 * 32, 4 * 8 * 32 + BUCKETS}},
            {
                "neuron": {64 * 9, 64 * 5},
                "head": {
                    4 * 8 * 32 * 9 + 2 * 9 * 9 * 8,  # of the encoder
                    4 * 8 * 32 * 5 + 2 * 5 * 5 * 8,  # of the decoder
                    2 * 8 * 32 * (5 + 9) + 2 * 5 * 9 * 8,  # of what the decoder reads of the encoder
                },
            },
        ),
    ],
)
def test_costs_by_hand(model_type: str, parameters: dict[str, set[int]], macs: dict[str, set[int]]) -> None:
    arms = table_of(model_of(model_type), ["neuron", "head"])
    block = {"neuron": 16, "head": 1}
    for kind, size in block.items():
        rows = arms.of_kind(kind)
        assert set(arms.parameters[rows].tolist()) == {size * cost for cost in parameters[kind]}
        assert set(arms.macs[rows].tolist()) == {size * cost for cost in macs[kind]}


def test_the_counts_of_a_whole_model_by_hand() -> None:
    model = model_of("mixtral")
    counted = count_parameters(model)
    assert counted["ffn_parameters"] == LAYERS * (EXPERTS * 3 * 32 * WIDTH + EXPERTS * 32), "experts and routers"
    assert counted["attention_parameters"] == LAYERS * 2 * 48 * 32
    assert counted["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    model = model_of("t5")
    counted = count_parameters(model)
    assert counted["attention_parameters"] == 3 * LAYERS * 4 * 32 * 32 + 2 * BUCKETS * HEADS
    assert counted["ffn_parameters"] == 2 * LAYERS * 2 * 32 * WIDTH
    tied = model_of("gpt2", tie_word_embeddings=True)
    untied = model_of("gpt2", tie_word_embeddings=False)
    assert count_parameters(untied)["parameters"] - count_parameters(tied)["parameters"] == 64 * 32


@pytest.mark.parametrize("model_type", TYPES)
def test_the_table_is_sorted_and_covers_every_unit(model_type: str) -> None:
    model = model_of(model_type)
    sites = {site.name: site for site in sites_of(model)}
    arms = table_of(model, ["expert", "head", "neuron"], 20)
    in_order = [name for kind in ("neuron", "head", "expert") for name, site in sites.items() if site.kind == kind]
    assert [site for site, _ in arms.groups()] == in_order
    for name, rows in arms.groups():
        assert set(arms.kind[rows]) == {sites[name].kind}
        assert set(arms.layer[rows]) == {sites[name].layer} <= set(range(LAYERS))
        assert arms.start[rows[0]] == 0
        assert np.array_equal(arms.start[rows[1:]], arms.stop[rows[:-1]])
        assert arms.stop[rows[-1]] == sites[name].units
        assert arms.index[rows].tolist() == list(range(len(rows)))
    neurons = table_of(model, ["neuron"], 1)
    assert set(neurons.kind) == {"neuron"}
    assert len(neurons) == sum(site.units for site in sites.values() if site.kind == "neuron")


@pytest.mark.parametrize("model_type", TYPES)
def test_a_head_arm_is_what_shares_keys_and_values(model_type: str) -> None:
    model = model_of(model_type)
    sites = sum(heads for heads, _ in sites_by_layer(model))
    if not sites:
        pytest.skip("all heads stay")
    arms = table_of(model, ["head"])
    size = HEADS // getattr(model.config.get_text_config(), "num_key_value_heads", HEADS)
    assert set(arms.units.tolist()) == {size}
    assert len(arms) == sites * HEADS // size


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "mixtral"])
def test_a_query_head_is_an_arm_where_all_share_one_key_value_head(model_type: str) -> None:
    model = model_of(model_type, num_key_value_heads=1)
    arms = table_of(model, ["head"])
    assert len(arms) == LAYERS * HEADS and set(arms.units.tolist()) == {1}
    attention = model.base_model.layers[0].self_attn
    rows = (*attention.q_proj.parameters(), *attention.o_proj.parameters())
    small = cut(model, {"layers.0.self_attn.o_proj": np.array([0, 2, 3])}, "per_layer")
    smaller = small.base_model.layers[0].self_attn
    assert torch.equal(smaller.k_proj.weight, attention.k_proj.weight)
    assert torch.equal(smaller.v_proj.weight, attention.v_proj.weight)
    assert model.num_parameters() - small.num_parameters() == arms.parameters[0]
    assert arms.parameters[0] == sum(parameter.numel() for parameter in rows) // HEADS


def test_kinds_that_a_model_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="the model has no experts that can be cut"):
        table_of(model_of("bert"), ["expert"])
    assert table_of(model_of("bert"), ["head", "expert"]).kinds() == ["head"]


@variants
def test_parameters_are_counted_without_a_cut(model_type: str, changes: dict[str, object]) -> None:
    """Copies of T5's tables are among them, and neurons of experts that went do not count twice."""
    model = model_of(model_type, **changes)
    changed = touched(kept_units(model, keep_for(model, "per_layer")))
    small = cut(model, {site.name: units for site, units in changed}, "per_layer")
    assert parameters_after(model, changed, count_parameters(model)) == count_parameters(small)


def test_cross_attention_alone_leaves_self_attention_as_it_is() -> None:
    model = model_of("t5")
    small = cut(model, {"decoder.block.0.layer.1.EncDecAttention.o": np.arange(3)}, "per_layer")
    assert not small.config.mabprune["copies"]
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters()) == 4 * 8 * 32
