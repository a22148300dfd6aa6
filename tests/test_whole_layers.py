"""Layers that go as a whole: arms of their own, and those that lose all that is in them, in every room that meets
them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, projection_of
from hf_mabprune.architectures.cost import count_macs, count_parameters
from hf_mabprune.arms import Ints
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.cli import main
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.surgery.biases import declare_biases, may_have_bias
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.empty_layers import can_go_empty, without_empty_layers
from hf_mabprune.tasks.batch import typical_example
from tests.problems import QUICK, arms_of, problem, settings_for
from tests.seeds import moved
from tests.shows import Shows
from tests.tiny_models import NOTHING, deep_model, head_of, outputs_of, site_of
from tests.tiny_sizes import VOCABULARY

STAY = ("albert", "deberta-v2", "esm", "qwen2_5_vl", "qwen3_vl")  # read aside, or run over and over
TYPES = [name for name in ARCHITECTURES.names() if name not in STAY]
SOME = ("bert", "gemma3_text", "gpt2", "llama", "t5", "vit")
DECODERS = ("llama", "gemma3_text", "gpt2", "mixtral", "smollm3", "lfm2", "qwen3_5_text")
CLEAR = ("clip", "exaone4", "gemma3_text", "gpt2", "lfm2", "llama", "mbart", "opt", "phi", "phi3", "vit", "whisper")


def without_some(model: PreTrainedModel) -> dict[str, Ints]:
    """Keep indices without the first and the last layer that may go of each stack, as far as there are several."""
    stacks: dict[str, list[str]] = {}
    for site in architecture_of(model).whole_layers(model):
        stacks.setdefault(site.name.rpartition(".")[0], []).append(site.name)
    return {name: NOTHING for names in stacks.values() for name in (names[0], names[-1])}


def without_all_in(model: PreTrainedModel, layers: list[str]) -> dict[str, Ints]:
    return {
        site.name: NOTHING for site in architecture_of(model).sites(model) if site.prefix.removesuffix(".") in layers
    }


def reloaded(model: PreTrainedModel, folder: Path, head: str) -> PreTrainedModel:
    save_checkpoint(model, folder, None, torch.float32)
    again: PreTrainedModel = getattr(transformers, head).from_pretrained(folder).eval()
    return again


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", TYPES)
def test_masked_equals_pruned_equals_reloaded(model_type: str, layout: Any, tmp_path: Path, shows: Shows) -> None:
    model, head = deep_model(model_type), head_of(model_type)
    shows("equivalence", model_type, ["layer"], layout, head=head)
    keep = without_some(model)
    with masked(model, masks=keep_masks(model, keep)):
        expected = outputs_of(model, head)
    small = cut(model, keep, layout)
    again = reloaded(small, tmp_path, head)
    assert keep and (outputs_of(model, head) - expected).abs().max() > 1e-4
    for other in (small, again):
        assert (outputs_of(other, head) - expected).abs().max() < 1e-5
    if layout == "uniform":
        assert type(again) is type(model), "a stock class"
    layers = [len(architecture_of(each).layers(each)) for each in (model, again)]
    assert layers[0] - layers[1] == len(keep)


@pytest.mark.parametrize("model_type", STAY)
def test_layers_stay_that_are_read_by_something_else_or_run_over_and_over(model_type: str) -> None:
    model = deep_model(model_type)
    assert not architecture_of(model).whole_layers(model)
    assert architecture_of(model).kept_whole(model)["layer"]


def test_the_first_layer_of_each_kind_stays() -> None:
    found = {}
    for model_type in ("llama", "gemma3_text", "t5"):
        model = deep_model(model_type)
        found[model_type] = [site.name for site in architecture_of(model).whole_layers(model)]
    assert found == {
        "llama": ["layers.1", "layers.2", "layers.3"],
        "gemma3_text": ["layers.2", "layers.3"],
        "t5": [f"{side}.block.{number}" for side in ("encoder", "decoder") for number in (1, 2, 3)],
    }


def test_what_a_config_says_of_each_layer_follows() -> None:
    gemma = deep_model("gemma3_text", layers=5)
    small = cut(gemma, {"layers.2": NOTHING, "layers.3": NOTHING}, "uniform")
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert small.config.num_hidden_layers == 3 and small.config.layer_types == kinds
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1, 2]
    assert [layer.self_attn.is_sliding for layer in small.model.layers] == [True, False, True]
    smol = deep_model("smollm3")
    smol.config.no_rope_layers = [1, 0, 0, 1]
    for layer, rope in zip(smol.model.layers, smol.config.no_rope_layers, strict=True):
        layer.self_attn.use_rope = rope
    assert cut(smol, {"layers.1": NOTHING}, "uniform").config.no_rope_layers == [1, 0, 1]


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", DECODERS)
def test_with_a_cache_it_writes_what_it_writes_without(
    model_type: str, layout: Any, tmp_path: Path, shows: Shows
) -> None:
    shows("generation", model_type, ["layer"], layout)
    model = deep_model(model_type, layers=6)
    small = reloaded(cut(model, without_some(model), layout), tmp_path, "AutoModelForCausalLM")
    check_generation(small)


def check_generation(small: PreTrainedModel) -> None:
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(moved(0)))
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(ids, **options), small.generate(ids, use_cache=False, **options))
    beams = [small.generate(ids, num_beams=3, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.parametrize("model_type", SOME)
def test_a_second_pruning_goes_on_from_there(model_type: str, tmp_path: Path) -> None:
    model, head = deep_model(model_type), head_of(model_type)
    model = cut(model, {site_of(model, "neuron", 3).name: np.arange(16)}, "per_layer")
    once = cut(model, dict.fromkeys(list(without_some(model))[:1], NOTHING), "per_layer")
    neurons = [site for site in architecture_of(once).sites(once) if site.kind == "neuron"]
    assert 16 in {site.units for site in neurons}, "sizes follow their layers"
    twice = cut(once, {neurons[-1].name: np.arange(8)}, "per_layer")
    last = architecture_of(twice).whole_layers(twice)[0].name
    with masked(twice, masks=keep_masks(twice, {last: NOTHING})):
        expected = outputs_of(twice, head)
    again = reloaded(cut(twice, {last: NOTHING}, "per_layer"), tmp_path, head)
    assert (outputs_of(again, head) - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match="per-layer sizes already"):
        cut(twice, {last: NOTHING}, "uniform")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "vit"])
def test_arms_of_layers_count_what_goes_with_them(model_type: str) -> None:
    model, _, batches, _ = problem(model_type)
    arms = arms_of(model, 16, batches, ["layer"])
    (name,) = arms.site.tolist()
    small = cut(model, {name: NOTHING}, "uniform")
    example = typical_example(batches)
    for total, gone in (
        (lambda each: count_parameters(each)["parameters"], arms.parameters),
        (lambda each: count_macs(each, example), arms.macs),
    ):
        assert total(model) - total(small) == gone.sum() > 0


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("model_type", CLEAR)
def test_a_layer_goes_where_all_in_it_goes(model_type: str, biased: bool, tmp_path: Path) -> None:
    model, head = deep_model(model_type, layers=5), head_of(model_type)
    layers = can_go_empty(model)[-2:]
    small = cut(model, without_all_in(model, layers), "per_layer")
    sites = architecture_of(small).sites(small, empty=True)
    for site in (site for site in sites if biased and not site.units and may_have_bias(small, site)):
        projection = projection_of(small, site)
        new = [] if projection.bias is not None else [site]
        projection.write_bias(torch.randn(len(projection.weight)))
        declare_biases(small, new)
    less = without_empty_layers(small)
    again, before = reloaded(less, tmp_path, head), len(architecture_of(small).layers(small))
    stay = biased and model_type in ("exaone4", "gemma3_text")  # a norm lies between a bias before and the stream
    assert before - len(architecture_of(again).layers(again)) == (0 if stay else len(layers)) and layers
    for other in (less, again):
        assert (outputs_of(other, head) - outputs_of(small, head)).abs().max() < 1e-4
    if head == "AutoModelForCausalLM":
        check_generation(again)


@pytest.mark.parametrize("model_type", ["bert", "bart", "distilbert", "t5", "lfm2"])
def test_a_layer_stays_where_more_is_in_it_than_blocks_that_can_go(model_type: str) -> None:
    model = deep_model(model_type)
    may_go = can_go_empty(model)
    assert may_go == (["layers.3"] if model_type == "lfm2" else [])
    small = cut(model, {site_of(model, "neuron", 2).name: NOTHING}, "per_layer") if model_type != "bart" else model
    assert without_empty_layers(small) is small


def test_what_cannot_go_is_refused_in_one_line() -> None:
    llama = deep_model("llama")
    for keep, message in (
        ({"layers.0": NOTHING}, "layers.0 must stay"),
        ({"layers.1": NOTHING, "layers.2.mlp.down_proj": np.arange(8)}, "cut one after the other"),
    ):
        for layout in ("uniform", "per_layer"):
            with pytest.raises(ValueError, match=message):
                cut(llama, keep, layout)
    with pytest.raises(ValueError, match="no layers that can be cut: one layer runs over and over"):
        model, _, batches, _ = problem("albert")
        arms_of(model, 16, batches, ["layer"])


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("model_type", "layout", "search"),
    [("llama", "auto", {}), ("bert", "per_layer", {"criterion": "block_influence"})],
)
def test_a_run_lets_layers_go_that_do_nothing(
    model_type: str,
    layout: str,
    search: dict[str, Any],
    tmp_path: Path,
    files: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_for(tmp_path, files, model_type, prune={"target": {"neurons": 0.5}}, compensation=QUICK)
    model = deep_model(model_type, head_of(model_type))
    name = architecture_of(model).whole_layers(model)[1].name
    for kind in ("head", "neuron"):
        projection = projection_of(model, site_of(model, kind, 2))
        projection.write(projection.weight * 1e-4)
    model.save_pretrained(tmp_path / "model")
    changed = settings.model_dump() | {"prune": {"target": {"layers": 0.25}, "layout": layout}, "search": search}
    changed["output"] |= {"criteria": ["block_influence", "taylor"]}
    result = prune_from_config(type(settings).model_validate(changed).resolved())

    assert result.model.config.num_hidden_layers == 3
    assert [site for site, (left, _) in result.report.kept["layer"].items() if not left] == [name]
    assert result.report.reload["max_logit_difference"] < 1e-4
    assert result.report.layout == ("uniform" if layout == "auto" else layout)
    assert main(["verify", str(tmp_path / "out"), "--base", str(tmp_path / "model")]) == 0
    assert "FAILED" not in capsys.readouterr().out
