"""Which layouts a model and a target allow, and what is said where one is not possible."""

import pytest
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.cost import arm_table, count_macs, count_parameters
from hf_mabprune.config import PruningConfig
from hf_mabprune.selection.layouts import Plans, make_plans, uniform_head_counts, width_multiple
from hf_mabprune.surgery.cut import cut
from tests.tiny_models import keep_for, tiny_config, tiny_model

EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 4}


def plans_for(model: PreTrainedModel, target: dict[str, float], **settings: object) -> Plans:
    """Plans of a tiny model, with single neurons as arms unless told otherwise."""
    config = PruningConfig.model_validate({"target": target, "block_size": 8, **settings})
    arms = arm_table(model, list(config.arms), config.block_size, 9)
    totals = count_parameters(model) | {"macs": count_macs(model, 9)}
    return make_plans(model, arms, totals, config)


def test_auto_has_the_choice_where_both_are_possible() -> None:
    plans = plans_for(tiny_model("llama", "AutoModelForCausalLM"), {"neurons": 0.5, "heads": 0.5})
    assert plans.search.layout == "per_layer"
    assert plans.uniform is not None
    assert plans.uniform.layout == "uniform"
    assert plans.reason == ""


def test_auto_is_per_layer_for_the_heads_of_bert_and_says_why() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    plans = plans_for(model, {"neurons": 0.5, "heads": 0.5})
    assert (plans.search.layout, plans.uniform) == ("per_layer", None)
    assert plans.reason == (
        "auto: uniform is not possible: a stock bert config cannot say 1 heads of 8: its head size is 32 / heads. "
        "Use layout per_layer, or prune neurons only"
    )
    neurons = plans_for(model, {"neurons": 0.5}, arms=["neuron"])
    assert neurons.uniform is not None


def test_uniform_heads_of_bert_are_refused() -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    with pytest.raises(ValueError, match="a stock bert config cannot say"):
        plans_for(model, {"heads": 0.5}, layout="uniform")


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_layout_asked_for_is_the_only_one(layout: str) -> None:
    plans = plans_for(tiny_model("llama", "AutoModel"), {"neurons": 0.5}, layout=layout)
    assert (plans.search.layout, plans.uniform, plans.reason) == (layout, None, "asked for")


@pytest.mark.parametrize(
    ("model_type", "sizes", "counts"),
    [
        ("llama", EIGHT, {2, 4}),
        ("llama", {**EIGHT, "num_key_value_heads": 8}, {1, 2, 4}),
        ("llama", {**EIGHT, "num_key_value_heads": 2}, {4}),
        ("mistral", EIGHT, {2, 4, 6}),
        ("qwen3", {**EIGHT, "num_key_value_heads": 8}, {1, 2, 3, 4, 5, 6, 7}),
        ("bert", {"num_attention_heads": 8}, set()),
    ],
)
def test_head_counts_that_a_stock_config_can_say(model_type: str, sizes: dict[str, int], counts: set[int]) -> None:
    config = tiny_config(model_type, **sizes)
    architecture = architecture_of(tiny_model(model_type, "AutoModel"))
    assert uniform_head_counts(architecture, config) == counts
    assert config.num_attention_heads == 8


@pytest.mark.parametrize(("model_type", "steps"), [("llama", (2, 1)), ("mistral", (3, 2, 1))])
def test_uniform_steps_of_heads(model_type: str, steps: tuple[int, ...]) -> None:
    model = tiny_model(model_type, "AutoModel", **EIGHT)
    assert plans_for(model, {"heads": 0.5}, layout="uniform").search.steps["head"] == steps


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
    assert plans.search.steps == {"neuron": steps}


def test_floors_of_heads_are_key_value_groups() -> None:
    model = tiny_model("llama", "AutoModel", **EIGHT)
    plans = plans_for(model, {"heads": 0.25}, min_heads=3, layout="per_layer")
    assert {floor for (kind, _), floor in plans.search.floors.items() if kind == "head"} == {3}
    with pytest.raises(ValueError, match=r"nearest that can is 0.25$"):
        plans_for(model, {"heads": 0.5}, min_heads=3, layout="per_layer")


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
    ("round_to", "hidden_size", "multiple"), [("auto", 1023, 1), ("auto", 1024, 64), (32, 4096, 32), (8, 64, 8)]
)
def test_multiples_of_widths(round_to: int | str, hidden_size: int, multiple: int) -> None:
    config = PruningConfig.model_validate({"target": {"macs": 0.1}, "round_to": round_to})
    assert width_multiple(config, hidden_size) == multiple
