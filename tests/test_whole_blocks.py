"""Attention and FFN blocks that go whole: what is left of them, in every room that meets them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of
from hf_mabprune.architectures.cost import count_macs
from hf_mabprune.arms import Ints
from hf_mabprune.checkpoints.load import load_weights
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.cli import main
from hf_mabprune.compensation import DenseReference, compensate, make_compensation
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.surgery.cut import cut
from tests.problems import QUICK, arms_of, problem, pull_all, rounding, settings_for, whole
from tests.seeds import moved
from tests.shows import Shows
from tests.tiny_models import (
    NOTHING,
    deep_model,
    head_of,
    inputs_for,
    keep_of,
    outputs_of,
    site_of,
    tiny_model,
    without_last,
)
from tests.tiny_sizes import VOCABULARY

TYPES = [
    name
    for name in ARCHITECTURES.names()
    if any(spec.empties for stack in ARCHITECTURES.get(name).stacks for spec in stack.sites)
]
SOME = ("bert", "llama", "gemma3_text", "gpt2")
SERIES = 2e-6  # of a divergence: which terms of its series are taken depends on what else is in the pass


def without_blocks(model: PreTrainedModel, after: int = 0) -> dict[str, Ints]:
    """Keep indices that let go of all that may go whole in the layers after one, and of some units elsewhere."""
    architecture, keep = architecture_of(model), {}
    for site in architecture.sites(model):
        if site.layer > after and not architecture.least_units(model, site):
            keep[site.name] = NOTHING
        elif site.kind != "expert" and site.expert is None:
            keep[site.name] = np.arange(site.group * (site.units > site.group), site.units)
    return keep


def empty_sites(model: PreTrainedModel) -> list[str]:
    return [site.name for site in architecture_of(model).sites(model, empty=True) if not site.units]


@pytest.mark.parametrize("model_type", TYPES)
def test_masked_equals_pruned_equals_reloaded_and_saved_again(model_type: str, tmp_path: Path, shows: Shows) -> None:
    model, head = tiny_model(model_type, head_of(model_type)), head_of(model_type)
    keep = without_blocks(model)
    gone = [name for name, units in keep.items() if not len(units)]
    if not gone:
        pytest.skip("experts stay, and the first attention of a kind")
    kinds = {site.kind for site in architecture_of(model).sites(model) if site.name in gone}
    shows("whole blocks", model_type, kinds, "per_layer")
    with masked(model, masks=keep_masks(model, keep)):
        expected = outputs_of(model, head)
    small = cut(model, keep, "per_layer")
    save_checkpoint(small, tmp_path / "first", None, torch.float32)
    again = getattr(transformers, head).from_pretrained(tmp_path / "first").eval()
    again.save_pretrained(tmp_path / "second")
    twice = getattr(transformers, head).from_pretrained(tmp_path / "second").eval()

    assert gone and empty_sites(small) == empty_sites(twice) == gone
    assert (outputs_of(model, head) - expected).abs().max() > 1e-3
    for other in (small, again, twice):
        assert (outputs_of(other, head) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("model_type", [*SOME, "t5"])
def test_a_second_pruning_goes_on_from_there(model_type: str, tmp_path: Path) -> None:
    head = head_of(model_type)
    model = deep_model(model_type, layers=3)
    once = cut(model, without_blocks(model, after=1), "per_layer")
    keep = without_blocks(once)
    with masked(once, masks=keep_masks(once, keep)):
        expected = outputs_of(once, head)
    twice = cut(once, keep, "per_layer")
    save_checkpoint(twice, tmp_path, None, torch.float32)
    again = getattr(transformers, head).from_pretrained(tmp_path).eval()

    assert (outputs_of(again, head) - expected).abs().max() < 1e-5
    assert len(empty_sites(again)) > len(empty_sites(once)) > 0
    assert set(empty_sites(again)) >= set(empty_sites(once))
    if model_type != "t5":  # whose two stacks transformers has no such schema for
        sizes = {int(layer): config for layer, config in again.config.to_dict()["per_layer_config"].items()}
        for site in architecture_of(again).sites(again, empty=True):
            assert sizes[site.layer].get(site.spec.units, getattr(again.config, site.spec.units)) == site.units


@pytest.mark.parametrize("model_type", SOME)
def test_a_block_that_is_gone_adds_its_bias_and_costs_nothing(model_type: str) -> None:
    model = deep_model(model_type, "AutoModel", 3)
    sites = [site_of(model, kind, 2) for kind in ("head", "neuron")]
    small = cut(model, {site.name: NOTHING for site in sites}, "per_layer")
    added: dict[str, torch.Tensor] = {}
    for site in sites:
        module = small.get_submodule(site.block)
        module.register_forward_hook(
            lambda _, __, out, name=site.name: added.update({name: out[0] if isinstance(out, tuple) else out})
        )
    outputs_of(small)
    for site in sites:
        bias = small.get_submodule(site.name).bias
        assert torch.equal(added[site.name], torch.zeros_like(added[site.name]) + (0 if bias is None else bias))
    within = {name.lower(): weight.numel() for name, weight in small.named_parameters() if ".2." in name}
    left = sum(count for name, count in within.items() if "norm" not in name and ".ln_" not in name)
    assert left == (2 * 32 if model_type in ("bert", "gpt2") else 0), "biases of output projections"
    example = {name: tensor[:1] for name, tensor in inputs_for(model).items()}
    assert count_macs(small, example) == count_macs(tiny_model(model_type, "AutoModel"), example), "of two layers"


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "opt", "phi", "phi3"])
def test_with_a_cache_it_writes_what_it_writes_without(model_type: str, tmp_path: Path) -> None:
    model = deep_model(model_type, layers=3)
    save_checkpoint(cut(model, without_blocks(model), "per_layer"), tmp_path, None, torch.float32)
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(moved(0)))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = small.generate(ids, use_cache=False, **options)
    assert torch.equal(small.generate(ids, **options), plain)
    assert torch.equal(small.generate(ids, cache_implementation="static", **options), plain)
    beams = [small.generate(ids, num_beams=3, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*beams)


def test_the_first_attention_of_each_kind_stays_where_there_is_a_cache() -> None:
    may_go = {}
    for model_type in ("llama", "gemma3_text", "bert", "vit", "t5"):
        model = deep_model(model_type, layers=3)
        heads = [site for site in architecture_of(model).sites(model) if site.kind == "head"]
        may_go[model_type] = [not architecture_of(model).least_units(model, site) for site in heads]
    assert may_go == {
        "llama": [False, True, True],
        "gemma3_text": [False, False, True],  # windows of four, and every second layer without
        "bert": [True] * 3,
        "vit": [True] * 3,
        "t5": [False] * 9,
    }
    decoder = tiny_model("bert", "AutoModelForCausalLM", is_decoder=True)
    assert architecture_of(decoder).least_units(decoder, site_of(decoder, "head", 0)) == 1


@pytest.mark.parametrize("model_type", SOME)
def test_pulls_in_a_model_and_in_a_context_where_blocks_are_gone(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    keep = without_last(model)
    smaller = cut(model, keep, "per_layer").double()
    model.double()
    kept = ~np.isin(arms.site, list(keep))
    left = arms_of(smaller, 16, batches)
    assert list(left.site) == list(arms.site[kept])
    for each, table, context in ((model, arms, kept), (smaller, left, whole(left))):
        slow = pull_all(ReferencePulls(each, table, task, batches), context)
        fast = pull_all(ReplayPulls(each, table, task, batches), context)
        np.testing.assert_allclose(fast, slow, rtol=0, atol=max(rounding(model), SERIES * np.abs(slow).max()))
        assert np.abs(slow).max() > 0


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize("model_type", [*SOME, "exaone4", "esm", "mpnet", "deberta-v2", "phi3"])
@pytest.mark.parametrize("name", ["least_squares", "mask_tuning"])
def test_a_refit_puts_the_mean_of_what_went_in_its_place(
    name: str, model_type: str, bottom_up: bool, tmp_path: Path
) -> None:
    model, task, batches, _ = problem(model_type)
    keep = {**without_last(model), **keep_of(model, neurons={0: range(24)})}
    reference, small = DenseReference.on(model, task, batches), cut(model, keep, "per_layer")
    method = make_compensation({"name": name, "guard": False, "bottom_up": bottom_up})
    figures = {each.site: each for each in compensate(method, reference, small, keep).sites}
    save_checkpoint(small, tmp_path, None, torch.float32)
    again = getattr(transformers, head_of(model_type)).from_pretrained(tmp_path).eval()

    assert (outputs_of(again) - outputs_of(small)).abs().max() < 1e-5
    for site in architecture_of(model).sites(model):
        if not len(keep.get(site.name, range(1))):
            bias = small.base_model.get_submodule(site.name).bias
            assert figures[site.name].refitted and bias.abs().max() > 0
            assert bottom_up or torch.allclose(bias, reference.regression(site).y.float(), atol=1e-5)


@pytest.mark.parametrize(("model_type", "layers"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_layers_may_lie_on_disk(model_type: str, layers: str, tmp_path: Path) -> None:
    model, head = tiny_model(model_type, head_of(model_type)), head_of(model_type)
    small = cut(model, without_last(model), "per_layer")
    save_checkpoint(model, tmp_path / "dense", None, torch.float32)
    save_checkpoint(small, tmp_path / "small", None, torch.float32)
    rest = dict.fromkeys(
        (path.rpartition(".")[0] for path in model.state_dict() if not path.startswith(layers)), "cpu"
    )
    (tmp_path / "away").mkdir()
    places = {
        "device_map": {**rest, f"{layers}.0": "disk", f"{layers}.1": "disk"},
        "offload_folder": tmp_path / "away",
    }
    dense, again = (load_weights(head, str(tmp_path / name), places) for name in ("dense", "small"))
    for other in (again, cut(dense.eval(), without_last(dense), "per_layer")):
        assert (outputs_of(other.eval()) - outputs_of(small)).abs().max() < 1e-5


def test_gradients_reach_the_bias_of_a_block_that_is_gone() -> None:
    model = deep_model("bert", layers=3)
    small = cut(model, without_blocks(model), "per_layer").train()
    small(**inputs_for(small)).logits.sum().backward()
    assert all(small.base_model.get_submodule(name).bias.grad.abs().max() > 0 for name in empty_sites(small)[:-1])


def test_what_cannot_go_is_refused_in_one_line() -> None:
    for model_type, keep, message in (
        ("llama", {"layers.0.self_attn.o_proj": NOTHING}, "layers.0.self_attn.o_proj would keep 0 heads: at least 2"),
        ("t5", {"encoder.block.1.layer.0.SelfAttention.o": NOTHING}, "would keep 0 heads: at least 1 must stay"),
        ("mixtral", {"layers.0.mlp.experts.0": NOTHING}, "would keep 0 neurons: at least 1 must stay"),
    ):
        with pytest.raises(ValueError, match=message):
            cut(tiny_model(model_type, head_of(model_type)), keep, "per_layer")


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("model_type", "target"), [("bert", {"neurons": 0.5, "heads": 0.5}), ("llama", {"macs": 0.6})]
)
def test_a_run_lets_blocks_go_that_do_nothing(
    model_type: str,
    target: dict[str, float],
    tmp_path: Path,
    files: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prune = {"target": target, "min_heads": 0, "min_neurons": 0}
    settings = settings_for(tmp_path, files, model_type, prune=prune, compensation={**QUICK, "bottom_up": True})
    model = getattr(transformers, head_of(model_type)).from_pretrained(tmp_path / "model")
    idle = [site_of(model, kind, 1).name for kind in ("head", "neuron")]
    for name in idle:
        model.base_model.get_submodule(name).weight.data *= 1e-6
    model.save_pretrained(tmp_path / "model")
    result = prune_from_config(settings)

    if model_type == "bert":  # whose norms stand behind the sums
        assert empty_sites(result.model) == idle
    else:
        assert result.model.config.num_hidden_layers == 1 and not empty_sites(result.model)
    assert result.report.reload["max_logit_difference"] < 1e-4
    assert {name: left for kind in result.report.kept.values() for name, (left, _) in kind.items()}.items() >= {
        name: 0 for name in idle
    }.items()
    assert main(["verify", str(tmp_path / "out"), "--base", str(tmp_path / "model")]) == 0
    assert "FAILED" not in capsys.readouterr().out
