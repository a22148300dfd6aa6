"""The central contract: masked logits = logits after surgery = logits after save and load, for every type and head."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hf_mabprune.architectures import architecture_of, linear_at
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.surgery.cut import Layout, cut
from tests.problems import selection
from tests.seeds import moved
from tests.tiny_models import every_type_and_head, keep_for, outputs_of, tiny_model

TOLERANCE = 1e-5


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize(("model_type", "head"), every_type_and_head())
def test_masked_equals_pruned_equals_reloaded(model_type: str, head: str, layout: Layout, tmp_path: Path) -> None:
    model = tiny_model(model_type, head)
    with torch.no_grad():
        for site in architecture_of(model).sites(model):  # so that what is cut is missed
            linear_at(model, site.output).weight.mul_(3)
    keep = selection(model_type, model, layout)
    whole = outputs_of(model, head)
    with masked(model, **keep_masks(model, keep)):
        by_mask = outputs_of(model, head)
    small = cut(model, keep, layout)
    by_cut = outputs_of(small, head)
    save_checkpoint(small, tmp_path, None, torch.float32)
    again = getattr(transformers, head).from_pretrained(tmp_path).eval()
    reloaded = outputs_of(again, head)

    assert (by_mask - by_cut).abs().max() < TOLERANCE
    assert (by_cut - reloaded).abs().max() < TOLERANCE
    assert (whole - by_mask).abs().max() > 10 * TOLERANCE, "the masks change the outputs, else nothing was tested"
    assert torch.equal(whole, outputs_of(model, head)), "masks and surgery leave the model as it was"
    stock = type(model)
    assert (type(again) is stock) == (layout == "uniform")
    assert isinstance(again, stock)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in small.parameters())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_what_is_saved_again_loads_again(layout: Layout, tmp_path: Path) -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    small = cut(model, keep_for(model, layout), layout)
    save_checkpoint(small, tmp_path / "first", None, torch.float32)
    first = load_pruned(tmp_path / "first")
    first.save_pretrained(tmp_path / "second", save_original_format=False)
    second = load_pruned(tmp_path / "second")

    assert torch.equal(outputs_of(first.eval(), ""), outputs_of(second.eval(), ""))
    assert (tmp_path / "second" / "modeling_pruned.py").exists() == (layout == "per_layer")


def test_pruning_twice_goes_on_from_the_smaller_sizes(tmp_path: Path) -> None:
    model = tiny_model("qwen3", "AutoModelForCausalLM")
    once = cut(model, keep_for(model, "per_layer"), "per_layer")
    keep = keep_for(once, "uniform", seed=1)
    with masked(once, **keep_masks(once, keep)):
        by_mask = outputs_of(once, "")
    twice = cut(once, keep, "per_layer")
    save_checkpoint(twice, tmp_path, None, torch.float32)

    assert (by_mask - outputs_of(load_pruned(tmp_path).eval(), "")).abs().max() < TOLERANCE


def test_config_describes_each_layer_in_the_familys_own_terms(tmp_path: Path) -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    keep = keep_for(model, "per_layer")
    save_checkpoint(cut(model, keep, "per_layer"), tmp_path, None, torch.float32)
    written = json.loads((tmp_path / "config.json").read_text())

    for layer in range(2):
        entry = written["per_layer_config"][str(layer)]
        assert entry["intermediate_size"] == len(keep.neurons[layer])
        heads = len(keep.heads[layer])
        assert entry.get("num_attention_heads", model.config.num_attention_heads) == heads
        assert entry.get("num_key_value_heads", model.config.num_key_value_heads) == heads // 2
    assert written["model_type"] == "mabprune_llama"
    assert written["auto_map"]["AutoModelForCausalLM"] == "modeling_pruned.MabpruneLlamaForCausalLM"


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = tiny_model("llama", "AutoModelForCausalLM", tie_word_embeddings=True)
    small = cut(model, keep_for(model, "per_layer"), "per_layer")
    save_checkpoint(small, tmp_path, None, torch.float32)
    again = load_pruned(tmp_path)

    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert small.lm_head.weight is not model.lm_head.weight


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_cache_equals_the_model_in_memory(cache: str, tmp_path: Path) -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    small = cut(model, keep_for(model, "per_layer"), "per_layer")
    save_checkpoint(small, tmp_path, None, torch.float32)
    prompts = torch.randint(3, 64, (3, 5), generator=torch.Generator().manual_seed(moved(1)))
    attention = torch.ones_like(prompts)
    prompts[0, :2], attention[0, :2] = 0, 0  # left padding
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": attention, "cache_implementation": cache}
    plain = {**settings, "use_cache": False, "cache_implementation": None}

    expected = small.generate(prompts, **plain)
    assert torch.equal(load_pruned(tmp_path).eval().generate(prompts, **settings), expected)


@pytest.mark.parametrize(
    ("model_type", "keep", "layout", "message"),
    [
        ("bert", {"heads": {0: [0, 1], 1: [2, 3]}}, "uniform", "cannot say 2 heads of 8.*per_layer"),
        ("llama", {"heads": {0: [0, 1], 1: [0, 1, 2, 3]}}, "uniform", "same number of heads in every layer"),
        ("llama", {"neurons": {0: [1, 2], 1: [1]}}, "uniform", "same number of neurons in every layer"),
        ("llama", {"heads": {0: [0, 2]}}, "per_layer", "go together, in groups of 2"),
        ("bert", {"neurons": {1: []}}, "per_layer", "layer 1 would keep no neurons"),
        ("bert", {"neurons": {0: [3, 48]}}, "per_layer", "layer 0 has 48 neurons"),
    ],
)
def test_what_a_layout_cannot_express_is_refused_with_the_reason(
    model_type: str, keep: dict[str, dict[int, list[int]]], layout: Layout, message: str
) -> None:
    model = tiny_model(model_type, "AutoModel")
    arrays = {
        kind: {layer: np.array(units, dtype=np.int64) for layer, units in layers.items()}
        for kind, layers in keep.items()
    }
    indices = KeepIndices(neurons=arrays.get("neurons", {}), heads=arrays.get("heads", {}))
    with pytest.raises(ValueError, match=message):
        cut(model, indices, layout)


def test_llama_refuses_uniform_head_counts_that_do_not_divide_the_hidden_size() -> None:
    model = tiny_model("llama", "AutoModel", num_attention_heads=8, num_key_value_heads=4)
    six = torch.arange(6).numpy()
    with pytest.raises(ValueError, match="6 heads: hidden_size 32 is not a multiple"):
        cut(model, KeepIndices(neurons={}, heads={0: six, 1: six}), "uniform")
    mistral = tiny_model("mistral", "AutoModel", num_attention_heads=8, num_key_value_heads=4)
    small = cut(mistral, KeepIndices(neurons={}, heads={0: six, 1: six}), "uniform")
    assert small.config.num_attention_heads == 6
