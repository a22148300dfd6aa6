"""Which layouts a model and a target allow, and what is said where one is not possible."""

from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.cost import arm_table, count_macs, count_parameters
from hf_mabprune.config import PruningConfig
from hf_mabprune.selection.layouts import Plans, largest_targets, make_plans, width_multiple
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.selected import Selection
from hf_mabprune.surgery.cut import cut
from tests.seeds import moved
from tests.selection.removals import steps_of
from tests.tiny_models import head_of, inputs_for, keep_for, tiny_model

EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 4}


def plans_for(model: PreTrainedModel, target: dict[str, float], **settings: object) -> Plans:
    """Plans of a tiny model, with single neurons as arms unless told otherwise."""
    return make_plans(*asked(model, target, **settings))


def asked(model: PreTrainedModel, target: dict[str, float], **settings: object) -> Any:
    """What plans are made from."""
    config = PruningConfig.model_validate({"target": target, "block_size": 8, **settings})
    example = {name: tensor[:1] for name, tensor in inputs_for(model).items()}
    arms = arm_table(model, config.kinds(), config.block_size, example)
    return model, arms, count_parameters(model) | {"macs": count_macs(model, example)}, config


def steps_of_kind(plan: Plan, kind: str) -> set[tuple[int, ...]]:
    """Numbers of arms that tied sites of a kind may keep."""
    kinds = dict(zip(plan.arms.site.tolist(), plan.arms.kind.tolist(), strict=True))
    return {tied.steps for tied in plan.tied if kinds[tied.sites[0]] == kind}


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "vit"])
def test_auto_has_the_choice_where_both_are_possible(model_type: str) -> None:
    plans = plans_for(tiny_model(model_type, head_of(model_type)), {"neurons": 0.5, "heads": 0.5})
    assert plans.search.layout == "per_layer"
    assert plans.uniform is not None
    assert plans.uniform.layout == "uniform"
    assert plans.reason == ""


MAKES = {
    "bert": "encoder.layer.0.attention.self.query.weight [32, 32], not [16, 32]",
    "gpt2": "h.0.attn.c_attn.weight [32, 96], not [32, 48]",
}
CANNOT = {
    model_type: f"a stock {model_type} config cannot say 2 heads: it makes {shapes}. Use layout per_layer, or prune "
    "neurons only"
    for model_type, shapes in MAKES.items()
} | {"t5": "a stock t5 config cannot say which heads share position biases: use per_layer"}
MEANS = (
    "; layout uniform keeps the same number of heads in every layer, heads 0.5 leaves 2 of 4, and 4 is the only one "
    "that such a config can say"
)


@pytest.mark.parametrize("model_type", CANNOT)
def test_auto_is_per_layer_where_a_config_cannot_say_the_heads_and_says_why(model_type: str) -> None:
    model = tiny_model(model_type, head_of(model_type))
    plans = plans_for(model, {"neurons": 0.5, "heads": 0.5})
    assert (plans.search.layout, plans.uniform) == ("per_layer", None)
    assert plans.reason == f"auto: uniform is not possible: {CANNOT[model_type]}{MEANS}"
    neurons = plans_for(model, {"neurons": 0.5}, arms=["neuron"])
    assert neurons.uniform is not None


@pytest.mark.parametrize("model_type", CANNOT)
def test_uniform_heads_are_refused_where_a_config_cannot_say_them(model_type: str) -> None:
    model = tiny_model(model_type, head_of(model_type))
    with pytest.raises(ValueError) as error:
        plans_for(model, {"heads": 0.5}, layout="uniform")
    assert str(error.value) == CANNOT[model_type] + MEANS


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_layout_asked_for_is_the_only_one(layout: str) -> None:
    plans = plans_for(tiny_model("llama", "AutoModel"), {"neurons": 0.5}, layout=layout)
    assert (plans.search.layout, plans.uniform, plans.reason) == (layout, None, "asked for")


@pytest.mark.parametrize(("model_type", "steps"), [("llama", (2, 1)), ("mistral", (3, 2, 1)), ("mixtral", (3, 2, 1))])
def test_uniform_steps_of_heads(model_type: str, steps: tuple[int, ...]) -> None:
    model = tiny_model(model_type, "AutoModel", **EIGHT)
    plan = plans_for(model, {"heads": 0.5}, layout="uniform").search
    assert steps_of(plan) == {"head": steps}
    assert plan.tied[0].sites == ("layers.0.self_attn.o_proj", "layers.1.self_attn.o_proj")


def test_targets_that_llama_cannot_say_are_refused_with_the_nearest() -> None:
    model = tiny_model("llama", "AutoModel", **EIGHT)
    with pytest.raises(ValueError, match=r"target.heads 0.25 cannot be met in layout uniform .* can is 0.5$"):
        plans_for(model, {"heads": 0.25}, layout="uniform")
    assert plans_for(model, {"heads": 0.5}, layout="uniform").search.layout == "uniform"
    auto = plans_for(model, {"heads": 0.25})
    assert (auto.search.layout, auto.uniform) == ("per_layer", None)
    assert "uniform is not possible: target.heads 0.25 cannot be met in layout uniform" in auto.reason
    mistral = tiny_model("mistral", "AutoModel", **EIGHT)
    assert plans_for(mistral, {"heads": 0.25}, layout="uniform").search.layout == "uniform"


def test_what_no_layout_can_meet_is_refused_by_auto() -> None:
    with pytest.raises(ValueError, match=r"target.parameters 0.99 cannot be met in layout per_layer"):
        plans_for(tiny_model("llama", "AutoModel"), {"parameters": 0.99})


@pytest.mark.parametrize(("round_to", "steps"), [("auto", (5, 4, 3, 2, 1)), (16, (4, 2)), (24, (3,))])
def test_uniform_widths_are_multiples(round_to: int | str, steps: tuple[int, ...]) -> None:
    model = tiny_model("bert", "AutoModel")
    plans = plans_for(model, {"neurons": 0.5}, arms=["neuron"], layout="uniform", round_to=round_to)
    assert steps_of(plans.search) == {"neuron": steps}


def test_floors_of_heads_are_key_value_groups() -> None:
    model = tiny_model("llama", "AutoModel", **EIGHT)
    plans = plans_for(model, {"heads": 0.25}, min_heads=3, layout="per_layer")
    heads = set(plans.search.arms.site[plans.search.arms.of_kind("head")])
    assert {floor for site, floor in plans.search.floors.items() if site in heads} == {3}
    with pytest.raises(ValueError, match=r"nearest that can is 0.25$"):
        plans_for(model, {"heads": 0.5}, min_heads=3, layout="per_layer")


def test_floors_of_nothing_let_blocks_go_where_the_layout_can_say_it() -> None:
    model = tiny_model("llama", "AutoModel")
    plans = plans_for(model, {"parameters": 0.5}, min_heads=0, min_neurons=0)
    assert plans.search.floors == {
        **{f"layers.{layer}.mlp.down_proj": 0 for layer in range(2)},
        "layers.0.self_attn.o_proj": 1,  # where a key-value cache is asked for its length
        "layers.1.self_attn.o_proj": 0,
    }
    assert plans.uniform is not None and set(plans.uniform.floors.values()) == {1}
    kept, _ = plans.search.choose(np.arange(len(plans.search.arms), dtype=float), plans.search.arms.units > 0, 1.0)
    gone = [name for name, units in plans.search.arms.kept_units(kept).items() if not len(units)]
    assert "layers.1.self_attn.o_proj" in gone
    assert set(plans_for(model, {"parameters": 0.3}).search.floors.values()) == {1}


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("bert", {"min_neurons": 0, "layout": "uniform"}, r"min_neurons must be at least 1 in layout uniform, got 0"),
        ("t5", {"min_heads": 0}, r"min_heads must be at least 1 for t5, got 0: no block of its heads can go whole"),
        ("mixtral", {"min_neurons": 0}, r"min_neurons must be at least 1 for mixtral, got 0: no block of its neurons"),
    ],
)
def test_floors_of_nothing_are_refused_where_no_block_can_go(
    model_type: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plans_for(tiny_model(model_type, head_of(model_type)), {"parameters": 0.3}, **settings)


def test_blocks_that_do_not_divide_the_width_are_per_layer_only() -> None:
    plans = plans_for(tiny_model("llama", "AutoModel"), {"neurons": 0.4}, block_size=20, arms=["neuron"])
    assert plans.uniform is None
    assert "last one of a layer's 48 neurons is smaller" in plans.reason


def test_models_with_per_layer_sizes_stay_per_layer() -> None:
    model = tiny_model("mistral", "AutoModel")
    small = cut(model, keep_for(model, "uniform"), "per_layer")
    plans = plans_for(small, {"neurons": 0.4})
    assert plans.uniform is None
    assert plans.reason.endswith("the model has per-layer sizes already: use layout per_layer")


@pytest.mark.parametrize(
    ("round_to", "hidden_size", "multiple"),
    [
        ("auto", 255, 1),
        ("auto", 256, 8),
        ("auto", 1023, 8),
        ("auto", 1024, 64),
        (32, 4096, 32),
        (8, 64, 8),
        (1, 384, 1),
    ],
)
def test_multiples_of_widths(round_to: int | str, hidden_size: int, multiple: int) -> None:
    config = PruningConfig.model_validate({"target": {"macs": 0.1}, "round_to": round_to})
    assert width_multiple(config, BertConfig(hidden_size=hidden_size)) == multiple


def test_what_devices_share_divides_by_them_in_every_layer() -> None:
    model = tiny_model("mistral", "AutoModel", **EIGHT)
    plan = plans_for(
        model, {"neurons": 0.4, "heads": 0.25}, layout="per_layer", block_size=1, tensor_parallel=2
    ).search
    assert set(plan.multiples.values()) == {4}, "two groups of two query heads"
    alone = plans_for(model, {"neurons": 0.4, "heads": 0.25}, layout="per_layer", block_size=1).search
    assert not alone.multiples
    for seed in range(20):
        selection = Selection(plan, np.ones(len(plan.arms), dtype=bool), 2 * 4, 1).random(moved(seed))
        for site, units in plan.arms.kept_units(selection.kept).items():
            assert len(units) > 0 and len(units) % plan.multiples.get(site, 8) == 0
    uniform = plans_for(model, {"heads": 0.5}, layout="uniform", tensor_parallel=2).search
    assert steps_of(uniform) == {"head": (2,)}
    config = PruningConfig.model_validate({"target": {"macs": 0.1}, "round_to": 32, "tensor_parallel": 4})
    assert width_multiple(config, BertConfig()) == 128, "32 for each device"


def test_devices_that_do_not_divide_a_layer_are_refused() -> None:
    model = tiny_model("mistral", "AutoModel", **EIGHT)
    with pytest.raises(
        ValueError, match=r"prune.tensor_parallel must divide the \d+ (head|neuron)s of layers.0.*, got 5"
    ):
        plans_for(model, {"heads": 0.25}, tensor_parallel=5)
    with pytest.raises(ValueError, match=r"round_to must be below 48, .* got 64 for tensor_parallel 4"):
        plans_for(model, {"neurons": 0.25}, tensor_parallel=4, round_to=16)


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_experts_of_a_layer_keep_one_width_of_a_multiple_of_eight(layout: str) -> None:
    model = tiny_model("mixtral", "AutoModel")
    plan = plans_for(model, {"neurons": 0.5}, layout=layout, block_size=4, arms=["neuron"]).search
    assert len(plan.tied) == {"uniform": 1, "per_layer": 2}[layout]
    assert steps_of_kind(plan, "neuron") == {(10, 8, 6, 4, 2)}  # of 12 blocks of 4
    scores = np.random.default_rng(moved(0)).normal(size=len(plan.arms))
    kept, _ = plan.choose(scores, np.ones(len(scores), dtype=bool))
    widths = [len(units) for units in plan.arms.kept_units(kept).values()]
    assert len(set(widths[:4])) == len(set(widths[4:])) == 1
    assert sum(widths) == 4 * 48
    small = cut(model, plan.arms.kept_units(kept), layout)
    assert [site.units for site in architecture_of(small).sites(small) if site.kind == "neuron"] == widths


def test_blocks_that_steps_of_eight_do_not_fit_leave_fewer_sizes() -> None:
    model = tiny_model("mixtral", "AutoModel")
    plan = plans_for(model, {"neurons": 0.5}, layout="per_layer", block_size=12, arms=["neuron"]).search
    assert steps_of_kind(plan, "neuron") == {(2,)}  # 24 of 48
    plan = plans_for(model, {"neurons": 0.5}, layout="per_layer", round_to=12, block_size=4, arms=["neuron"]).search
    assert steps_of_kind(plan, "neuron") == {(6,)}
    with pytest.raises(ValueError, match="nothing can go: lower block_size, round_to, or the floors"):
        plans_for(model, {"neurons": 0.5}, layout="per_layer", block_size=48, arms=["neuron"])


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize(("routed", "steps"), [(1, (3, 2, 1)), (2, (3, 2)), (3, (3,))])
def test_as_many_experts_stay_as_a_position_is_sent_to(routed: int, steps: tuple[int, ...], layout: str) -> None:
    model = tiny_model("mixtral", "AutoModel", num_experts_per_tok=routed)
    most = (4 - routed) / 4
    plan = plans_for(model, {"experts": most}, layout=layout).search
    assert set(plan.floors.values()) == {routed}
    assert steps_of_kind(plan, "expert") == ({steps} if layout == "uniform" else set())
    assert largest_targets(*asked(model, {"experts": most}, layout=layout))["experts"] == most
    with pytest.raises(ValueError, match=rf"target.experts 0.9 cannot be met .*the nearest that can is {most:g}$"):
        plans_for(model, {"experts": 0.9}, layout=layout)


def test_budgets_of_cost_take_heads_and_whole_experts_together() -> None:
    model = tiny_model("mixtral", "AutoModel")
    plan = plans_for(model, {"parameters": 0.3}, arms=["head", "expert"], layout="per_layer").search
    assert plan.arms.kinds() == ["head", "expert"]
    kept, _ = plan.choose(-plan.arms.parameters.astype(float), np.ones(len(plan.arms), dtype=bool))
    small = cut(model, plan.arms.kept_units(kept), "per_layer")
    assert count_parameters(small)["parameters"] <= 0.7 * count_parameters(model)["parameters"]
    with pytest.raises(ValueError, match="experts hold neurons, whose cost would count twice"):
        plans_for(model, {"parameters": 0.3}, arms=["neuron", "expert"])


def test_heads_of_both_stacks_and_of_what_a_decoder_reads_are_arms_of_their_own() -> None:
    model = tiny_model("t5", "AutoModelForSeq2SeqLM")
    plan = plans_for(model, {"heads": 0.5, "neurons": 0.5}, layout="per_layer").search
    assert len(plan.floors) == 3 * 2 + 2 * 2 and not plan.tied
    selection = Selection.along(plan, np.arange(len(plan.arms)), 1, 1).random(0)
    small = cut(model, plan.arms.kept_units(selection.kept), "per_layer")
    left = {"head": 0, "neuron": 0}
    for site in architecture_of(small).sites(small):
        left[site.kind] += site.units
    assert left == {"head": 6 * 4 // 2, "neuron": 4 * 48 // 2}
    uniform = plans_for(model, {"neurons": 0.5}, layout="uniform").search
    assert [len(tied.sites) for tied in uniform.tied] == [4], "both stacks read one field"


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 1}, {"num_key_value_heads": 2}])
def test_parameters_of_an_attention_that_goes_whole_are_counted_with_its_keys_and_values(
    changes: dict[str, int],
) -> None:
    model = tiny_model("llama", head_of("llama"), **changes)
    target = {"layer_parameters": 0.3}
    plan = plans_for(model, target, min_heads=0, layout="per_layer", arms=["neuron", "head"]).search
    (budget,), arms = plan.budgets, plan.arms
    for gone in (
        (arms.kind == "head") & (arms.layer == 1),
        (arms.kind == "head") & (arms.layer == 1) & (arms.index > 0),
    ):
        before, after = (count_parameters(each) for each in (model, cut(model, arms.kept_units(~gone), "per_layer")))
        assert plan.gone(budget, ~gone) == before["parameters"] - after["parameters"]
    first = np.where((arms.kind == "head") & (arms.layer == 1), 1.0, -arms.parameters.astype(float))
    kept, _ = plan.choose(first, np.ones(len(arms), dtype=bool))
    assert not kept[(arms.kind == "head") & (arms.layer == 1)].any()
    largest = arms.parameters[~kept].max()
    assert budget.amount <= plan.gone(budget, kept) < budget.amount + largest
