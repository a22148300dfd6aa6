"""Bytes on disk and in memory: counted before a model is cut, and what is there afterwards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.arms import LAYER, ArmTable
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.config import MemoryTarget, PruningConfig, TargetConfig
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.quantities import AtHand, quantities_of
from hf_mabprune.quantities.memory import memory_bytes
from hf_mabprune.quantities.stored import stored_bytes
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import Quantity, make_plan
from hf_mabprune.surgery.cut import cut
from tests.problems import QUICK, arms_of, limits, problem, settings_for, whole
from tests.tiny_models import head_of, tiny_model

DECODERS = ("llama", "gpt2", "gemma3_text", "qwen3_5_text", "mixtral", "deepseek_v3")


def plan_of(model_type: str, target: dict[str, Any]) -> tuple[PreTrainedModel, Plan]:
    """A tiny model, and the plan of a target that lets blocks of it go whole."""
    model, _, batches, _ = problem(model_type)
    arms = arms_of(model, 16, batches, ["neuron", "head"])
    asked = PruningConfig.model_validate({"target": target})
    return model, make_plan(arms, asked.target, {}, "per_layer", limits(arms), measured(model, arms, target))


def measured(model: PreTrainedModel, arms: ArmTable, target: dict[str, Any]) -> dict[str, Quantity]:
    """What a target is of, without refits."""
    at_hand = AtHand({}, None, Accelerator(cpu=True))
    return quantities_of(model, arms, PruningConfig.model_validate({"target": target}), torch.float32, False, at_hand)


@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
def test_a_file_has_no_more_bytes_than_are_counted_and_hardly_fewer(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, head_of(model_type))
    written = save_checkpoint(model, tmp_path, None, torch.bfloat16)
    assert written <= stored_bytes(model, torch.bfloat16) <= 1.15 * written, "half of it are names"


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_what_goes_with_arms_is_what_a_cut_model_lacks(model_type: str) -> None:
    target: dict[str, Any] = {"bytes": 0.2} if model_type == "bert" else {"memory": {"amount": 0.2, "length": 10**5}}
    model, plan = plan_of(model_type, target)
    (budget,) = plan.budgets
    kept, _ = plan.choose(np.random.default_rng(0).random(len(plan.arms)), whole(plan.arms))
    small = cut(model, plan.arms.kept_units(kept), "per_layer")
    if asked := TargetConfig.model_validate(target).memory:
        found = [memory_bytes(each, asked, torch.float32) for each in (model, small)]
        assert plan.left(budget, kept) == found[1]
    else:
        found = [stored_bytes(each, torch.float32) for each in (model, small)]
        assert plan.left(budget, kept) == pytest.approx(found[1], rel=1e-3)
    assert budget.total == found[0] and found[1] <= 0.8 * found[0]


@pytest.mark.parametrize("model_type", DECODERS)
def test_keys_and_values_are_counted_as_the_model_keeps_them(model_type: str) -> None:
    model, tokens = tiny_model(model_type, "AutoModelForCausalLM"), 6
    asked = [MemoryTarget(amount=0.1, length=length) for length in (tokens, 2 * tokens)]
    short, long = (memory_bytes(model, each, torch.float32) for each in asked)
    with torch.no_grad():
        kept = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    layers = [layer for layer in kept.layers if getattr(layer, "keys", None) is not None]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    weights = sum(each.nbytes for each in model.parameters()) + sum(each.nbytes for each in model.buffers())
    assert short == weights + held
    windows = [getattr(layer, "sliding_window", 99) - 1 for layer in layers]
    grown = [
        (layer.keys.nbytes + layer.values.nbytes) * min(2 * tokens, window) / min(tokens, window)
        for layer, window in zip(layers, windows, strict=True)
    ]
    assert long == weights + sum(grown)


def test_keys_and_values_that_query_heads_share_go_with_the_last_head() -> None:
    model = tiny_model("llama", head_of("llama"), num_key_value_heads=1)
    _, _, batches, _ = problem("llama")
    arms = arms_of(model, 16, batches, ["head"])
    target = {"memory": {"amount": 0.01, "length": 1000}}
    found = measured(model, arms, target)
    plan = make_plan(arms, TargetConfig.model_validate(target), {}, "per_layer", limits(arms), found)
    (budget,), (_, rows), kept = plan.budgets, arms.groups()[1], whole(arms)
    kept[rows[1:]] = False
    most = plan.gone(budget, kept)
    kept[rows] = False
    cache = 2 * 1000 * 8 * 4  # keys and values of 1,000 tokens, 8 numbers of 4 bytes each
    assert plan.gone(budget, kept) - most == pytest.approx(cache + most / 3, rel=0.01)


def test_whole_layers_take_their_keys_and_values_along() -> None:
    model, _, batches, _ = problem("llama")
    arms = arms_of(model, 16, batches, [LAYER])
    cost = measured(model, arms, {"memory": {"amount": 0.3, "length": 1000}})["memory"].cost
    assert (cost - 4 * arms.parameters == 2 * 1000 * 2 * 8 * 4).all()


@pytest.mark.parametrize(
    ("model_type", "memory", "message"),
    [
        ("llama", {"amount": 0.1}, r"length must say of how many tokens keys and values are kept, e.g. 2048"),
        (
            "bert",
            {"amount": 0.1, "length": 8},
            "length is for decoders, and bert keeps no keys and values: leave it out",
        ),
        ("t5", {"amount": 0.1, "length": 8}, "for encoders and decoders, and t5 is both: set target.bytes instead"),
        ("llama", {"amount": "1KB", "length": 8}, r"memory 1KB cannot be met .* can is 0\.\d+, from [\d.]+ KB to "),
    ],
)
def test_what_cannot_be_is_refused(model_type: str, memory: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(model_type, {"memory": memory})


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_run_says_what_was_asked_predicted_and_achieved(layout: str, tmp_path: Path, files: dict[str, str]) -> None:
    sizes = ["55 KB", "50KB"]
    prune = {"target": {"bytes": sizes}, "layout": layout}
    changes = {"prune": prune, "compensation": QUICK, "output": {"random_seeds": 1}}
    result = prune_from_config(settings_for(tmp_path, files, "llama", **changes))
    for asked, report in zip((55e3, 50e3), result.sizes, strict=True):
        reached = report.reached
        assert reached is not None and (reached.unit, reached.asked) == ("B", asked)
        folder = tmp_path / "out" / report.size_name
        assert reached.achieved == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert reached.achieved <= reached.predicted <= asked, "what refits add is reserved"
    said = result.summary(tmp_path / "out")
    assert "target bytes: 50 KB asked, " in said and report.size_name == "bytes-50KB"
