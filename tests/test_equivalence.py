"""The central contract: masked logits = logits after surgery = logits after save and load, for every type and head."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.arms import Ints
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.surgery.cut import Layout, cut
from tests.architectures.variants import TYPES, VARIANTS
from tests.problems import selection
from tests.seeds import moved
from tests.shows import Shows, kinds_cut
from tests.tiny_models import every_type_and_head, head_of, keep_for, keep_of, outputs_of, site_of, tiny_model
from tests.tiny_sizes import EXPERTS, HEADS, OF_TYPE, WIDTH

TOLERANCE = 1e-5
NEW = ("gpt2", "t5", "vit", "mixtral")
MANY = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
OF_SOME = {  # whose experts have to be many too, or whose heads share nothing but what is latent
    "mixtral": {"num_local_experts": 8, "intermediate_size": 128},
    "deepseek_v2": {"num_key_value_heads": 8},
    "deepseek_v3": {"num_key_value_heads": 8},
}


def on_request(*case: str) -> Any:
    """A case for the table of families alone: of what stock classes do with stock checkpoints, some types suffice."""
    return pytest.param(*case, marks=pytest.mark.slow)


def missed(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with larger output projections, so that what is cut is missed."""
    for site in architecture_of(model).sites(model):
        if site.kind != "expert":  # whose projections are those of its neurons
            projection = projection_of(model, site)
            projection.write(projection.weight * 3)
    return model


def many(model_type: str) -> dict[str, Any]:
    """Changes with which there are so many groups of heads that some are left to cut the second time."""
    sites = [(stack.config, spec) for stack in ARCHITECTURES.get(model_type).stacks for spec in stack.sites]
    if not any(spec.groups for _, spec in sites):
        return {}
    own, more = sites[0][0], MANY | OF_SOME.get(model_type, {})
    return {own: OF_TYPE[model_type][own] | more} if own else more


def size_of(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def check_equivalence(
    model: PreTrainedModel, keep: dict[str, Ints], layout: Layout, head: str, folder: Path
) -> PreTrainedModel:
    """Asserts masked = pruned = reloaded, and that the model stays as it was; gives the reloaded one."""
    whole = outputs_of(model, head)
    near = TOLERANCE * max(1.0, float(whole.abs().max()))
    with masked(model, masks=keep_masks(model, keep)):
        by_mask = outputs_of(model, head)
    small = cut(model, keep, layout)
    by_cut = outputs_of(small, head)
    save_checkpoint(small, folder, None, torch.float32)
    again = getattr(transformers, head).from_pretrained(folder).eval()

    assert (by_mask - by_cut).abs().max() < near
    assert (by_cut - outputs_of(again, head)).abs().max() < near
    assert (whole - by_mask).abs().max() > 10 * near, "the masks change the outputs, else nothing was tested"
    assert torch.equal(whole, outputs_of(model, head)), "masks and surgery leave the model as it was"
    assert type(again) is type(small)
    assert size_of(again) == size_of(small) < size_of(model)
    return again


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize(("model_type", "head"), every_type_and_head())
def test_masked_equals_pruned_equals_reloaded(
    model_type: str, head: str, layout: Layout, tmp_path: Path, shows: Shows
) -> None:
    model = missed(tiny_model(model_type, head))
    keep = selection(model, layout)
    shows("equivalence", model_type, kinds_cut(model, keep), layout, head=head)
    again = check_equivalence(model, keep, layout, head, tmp_path)
    assert (type(again) is type(model)) == (layout == "uniform")
    assert isinstance(again, type(model))


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize(("model_type", "changes"), [each for each in VARIANTS if each[1]], ids=str)
def test_configs_that_leave_something_out_or_say_it_differently(
    model_type: str, changes: dict[str, Any], layout: Layout, tmp_path: Path
) -> None:
    head = head_of(model_type)
    model = missed(tiny_model(model_type, head, **changes))
    check_equivalence(model, selection(model, layout), layout, head, tmp_path)


TWICE = [("uniform",) * 2, ("uniform", "per_layer"), ("per_layer",) * 2]
PAIRS = [(model_type, *layouts) for model_type in ("qwen3", *NEW) for layouts in TWICE]
PAIRS += [(model_type, "per_layer", "per_layer") for model_type in TYPES if model_type not in ("qwen3", *NEW)]
PAIRS += [on_request(each, "uniform", "uniform") for each in TYPES if each not in ("qwen3", *NEW)]


@pytest.mark.parametrize(("model_type", "first", "second"), PAIRS)
def test_a_second_pruning_goes_on_from_the_smaller_sizes(
    model_type: str, first: Layout, second: Layout, tmp_path: Path, shows: Shows
) -> None:
    head = head_of(model_type)
    model = missed(tiny_model(model_type, head, **many(model_type)))
    once = check_equivalence(model, selection(model, first), first, head, tmp_path / "first")
    keep = selection(once, second) if second == "uniform" else keep_for(once, second, seed=1)
    if first == second:
        shows("second pruning", model_type, kinds_cut(once, keep), second)
    twice = check_equivalence(once, keep, second, head, tmp_path / "second")
    assert (type(twice) is type(model)) == (second == "uniform")
    assert {site.name: site.units for site in architecture_of(twice).sites(twice)} == _sizes_after(once, keep)


def _sizes_after(model: PreTrainedModel, keep: dict[str, Ints]) -> dict[str, int]:
    """Units of every site of the smaller model, whose experts have new numbers."""
    sites = architecture_of(model).sites(model)
    gone = set()
    for router in (site for site in sites if site.kind == "expert" and site.name in keep):
        own = [site.name for site in members(router, sites)]
        gone |= {name for number, name in enumerate(own[::-1]) if number < len(own) - len(keep[router.name])}
    return {site.name: len(keep.get(site.name, range(site.units))) for site in sites if site.name not in gone}


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
def test_query_heads_on_one_key_value_head_go_one_by_one(model_type: str, layout: Layout, tmp_path: Path) -> None:
    head = head_of(model_type)
    model = missed(tiny_model(model_type, head, num_key_value_heads=1))
    first = {0: [0, 1, 3], 1: range(HEADS)} if layout == "per_layer" else {0: [1, 3], 1: [0, 2]}
    once = check_equivalence(model, keep_of(model, heads=first), layout, head, tmp_path / "first")
    second = {0: [1], 1: [2]} if layout == "per_layer" else {0: [0], 1: [1]}
    twice = check_equivalence(once, keep_of(once, heads=second), layout, head, tmp_path / "second")
    assert [site.units for site in architecture_of(twice).sites(twice) if site.kind == "head"] == [1, 1]
    assert twice.config.num_key_value_heads == 1


SAVED = [(model_type, "uniform") for model_type in ("llama", *NEW)]
SAVED += [(model_type, "per_layer") for model_type in TYPES]
SAVED += [on_request(each, "uniform") for each in TYPES if each not in ("llama", *NEW)]


@pytest.mark.parametrize(("model_type", "layout"), SAVED)
def test_what_is_saved_again_loads_again(model_type: str, layout: Layout, tmp_path: Path, shows: Shows) -> None:
    head = head_of(model_type)
    tiny_model(model_type, head).save_pretrained(tmp_path / "dense")
    model = getattr(transformers, head).from_pretrained(tmp_path / "dense").eval()
    keep = selection(model, layout)
    shows("second save", model_type, kinds_cut(model, keep), layout)
    small = cut(model, keep, layout)
    save_checkpoint(small, tmp_path / "first", None, torch.float32)
    first = load_pruned(tmp_path / "first")
    first.save_pretrained(tmp_path / "second", save_original_format=False)
    first.save_pretrained(tmp_path / "plainly")
    small.save_pretrained(tmp_path / "from memory")

    expected = outputs_of(small, head)
    for name in ("first", "second", "plainly", "from memory"):
        again = load_pruned(tmp_path / name).eval()
        assert type(again) is type(small)
        for parameter in again.parameters():
            parameter.data = parameter.data.clone()  # mapped files begin anywhere, which products round by
        assert torch.equal(outputs_of(again, head), expected), name
        assert (tmp_path / name / "modeling_pruned.py").exists() == (layout == "per_layer")


@pytest.mark.parametrize(
    ("model_type", "kind"), [*((each, kind) for each in NEW for kind in ("neuron", "head")), ("mixtral", "expert")]
)
def test_each_kind_alone(model_type: str, kind: str, tmp_path: Path) -> None:
    model = missed(tiny_model(model_type, head_of(model_type)))
    keep = keep_for(model, "per_layer", kinds=[kind])
    again = check_equivalence(model, keep, "per_layer", head_of(model_type), tmp_path)
    there = {site.name: site.units for site in architecture_of(again).sites(again)}
    before = architecture_of(model).sites(model)
    assert there == {site.name: len(keep.get(site.name, range(site.units))) for site in before if site.name in there}
    assert len(before) - len(there) == sum(EXPERTS - len(units) for units in keep.values() if kind == "expert")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("attention", ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"])
def test_one_attention_of_a_decoder_that_reads_an_encoder(attention: str, layer: int, tmp_path: Path) -> None:
    model = missed(tiny_model("t5", "AutoModelForSeq2SeqLM"))
    keep = {f"decoder.block.{layer}.{attention}": np.array([1, 3])}
    again = check_equivalence(model, keep, "per_layer", "AutoModelForSeq2SeqLM", tmp_path)
    cut_at = {site.name: site.units for site in architecture_of(again).sites(again) if site.kind == "head"}
    assert cut_at.pop(f"decoder.block.{layer}.{attention}") == 2
    assert len(cut_at) == 5 and set(cut_at.values()) == {HEADS}


def test_a_masked_expert_gets_no_token_and_the_others_share_its_odds() -> None:
    model = tiny_model("mixtral", "AutoModel")
    router, keep = model.layers[0].mlp.gate, [0, 2]
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(moved(0)))
    with torch.no_grad(), masked(model, masks={"layers.0.mlp.gate": torch.tensor([1.0, 0.0, 1.0, 0.0])}):
        _, weights, chosen = router(hidden)
    odds = (hidden @ router.weight.detach().T).softmax(-1)[..., keep]
    expected, place = (odds / odds.sum(-1, keepdim=True)).reshape(-1, 2).sort(descending=True)
    assert torch.equal(chosen.reshape(-1, 2), torch.tensor(keep)[place])
    assert torch.allclose(weights.reshape(-1, 2), expected, atol=1e-6)


def test_a_mask_by_layer_is_refused_where_a_layer_has_several_such_sites() -> None:
    model = tiny_model("t5", "AutoModel")
    with pytest.raises(ValueError) as error, masked(model, torch.ones(4, HEADS)):
        pass
    assert str(error.value) == (
        "a layer has several sites of heads, decoder.block.0.layer.0.SelfAttention.o and "
        "decoder.block.0.layer.1.EncDecAttention.o: give masks by site"
    )
    model = tiny_model("mixtral", "AutoModel")
    several = pytest.raises(ValueError, match=r"sites of neurons, layers.0.mlp.experts.0 and .*: give masks by site")
    with several, masked(model, neuron_mask={0: torch.ones(WIDTH)}):
        pass
    with masked(model, torch.ones(2, HEADS)):
        pass


def test_in_memory_the_cut_model_runs_attention_and_experts_as_the_dense_one() -> None:
    model = tiny_model("mixtral", "AutoModel")
    for attention, experts in (("sdpa", "grouped_mm"), ("eager", "eager")):
        model.set_attn_implementation(attention)
        model.set_experts_implementation(experts)
        for layout in ("uniform", "per_layer"):
            config = cut(model, selection(model, layout), layout).config
            assert (config._attn_implementation, config._experts_implementation) == (attention, experts)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "vit", "bert"])
def test_config_describes_each_layer_in_the_familys_own_terms(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, head_of(model_type))
    keep = keep_for(model, "per_layer")
    save_checkpoint(cut(model, keep, "per_layer"), tmp_path, None, torch.float32)
    written = json.loads((tmp_path / "config.json").read_text())

    for site in architecture_of(model).sites(model):
        entry = {**written, **written["per_layer_config"][str(site.depth)]}
        assert entry[site.spec.units] == len(keep[site.name])
        if site.spec.groups:
            assert entry[site.spec.groups] == len(keep[site.name]) // 2
    fields = {
        "llama": {"intermediate_size", "num_attention_heads", "num_key_value_heads"},
        "mixtral": {"intermediate_size", "num_attention_heads", "num_key_value_heads", "num_local_experts"},
        "gpt2": {"n_inner", "n_head"},
    }
    for entry in written["per_layer_config"].values():
        assert entry.keys() <= fields.get(model_type, {"intermediate_size", "num_attention_heads"})
    assert written["model_type"] == f"mabprune_{model_type}"
    auto = head_of(model_type)
    assert written["auto_map"][auto] == f"modeling_pruned.Mabprune{type(model).__name__}"


def test_layers_of_two_stacks_are_described_by_the_plan_alone(tmp_path: Path) -> None:
    model = tiny_model("t5", "AutoModelForSeq2SeqLM")
    save_checkpoint(cut(model, keep_for(model, "per_layer"), "per_layer"), tmp_path, None, torch.float32)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "per_layer_config" not in written
    assert (written["d_ff"], written["num_heads"]) == (WIDTH, HEADS)
    assert written["auto_map"]["AutoModelForSeq2SeqLM"] == "modeling_pruned.MabpruneT5ForConditionalGeneration"


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "t5", "mixtral"])
def test_tied_embeddings_stay_tied(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, head_of(model_type), tie_word_embeddings=True)
    small = cut(model, keep_for(model, "per_layer"), "per_layer")
    save_checkpoint(small, tmp_path, None, torch.float32)
    for tied in (small, load_pruned(tmp_path)):
        assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert small.get_output_embeddings().weight is not model.get_output_embeddings().weight


GENERATED = [(model_type, "uniform") for model_type in ("llama", "gpt2", "t5", "mixtral")]
GENERATING = [each for each in TYPES if head_of(each) in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")]
GENERATED += [(each, "per_layer") for each in GENERATING]
GENERATED += [on_request(each, "uniform") for each in GENERATING if (each, "uniform") not in GENERATED]


@pytest.mark.parametrize(("model_type", "layout"), GENERATED)
def test_generation_with_cache_equals_the_model_in_memory(
    model_type: str, layout: Layout, tmp_path: Path, shows: Shows
) -> None:
    model = missed(tiny_model(model_type, head_of(model_type)))
    keep = selection(model, layout)
    shows("generation", model_type, kinds_cut(model, keep), layout)
    small = cut(model, keep, layout)
    save_checkpoint(small, tmp_path, None, torch.float32)
    prompts = torch.randint(3, 64, (3, 5), generator=torch.Generator().manual_seed(moved(1)))
    attention = torch.ones_like(prompts)
    prompts[0, :2], attention[0, :2] = 0, 0  # left padding

    def generated(by: PreTrainedModel, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, and the logits that they were chosen by."""
        outputs = by.generate(
            prompts, attention_mask=attention, do_sample=False, max_new_tokens=12, min_new_tokens=12,
            return_dict_in_generate=True, output_logits=True, **settings,
        )  # fmt: skip
        return outputs.sequences, torch.stack(outputs.logits)

    tokens, logits = generated(small, use_cache=False)
    assert (logits[1:] - logits[:-1]).abs().amax((1, 2)).min() > 10 * TOLERANCE, "what came before matters"
    again = load_pruned(tmp_path).eval()
    for cache in ("dynamic", "static"):
        cached = generated(again, cache_implementation=cache)
        assert torch.equal(cached[0], tokens)
        assert (cached[1] - logits).abs().max() < TOLERANCE


KeepOf = Callable[[PreTrainedModel], dict[str, Any]]
ATTENTION, EXPERTS_0 = "layers.0.self_attn.o_proj", "layers.0.mlp.experts"


def of_layers(**kinds: dict[int, list[int]]) -> KeepOf:
    return lambda model: keep_of(model, **kinds)


@pytest.mark.parametrize(
    ("model_type", "keep", "layout", "message"),
    [
        ("bert", of_layers(heads={0: [0, 1], 1: [2, 3]}), "uniform", r"bert config cannot say 2 heads: .*per_layer"),
        ("gpt2", of_layers(heads={0: [0, 1], 1: [2, 3]}), "uniform", r"gpt2 config cannot say 2 heads: .*per_layer"),
        ("llama", of_layers(heads={0: [0, 1], 1: [0, 1, 2, 3]}), "uniform", "same number of heads in every layer"),
        ("llama", of_layers(neurons={0: [1, 2], 1: [1]}), "uniform", r"neurons in every layer, got \[1, 2\]"),
        ("llama", of_layers(heads={0: [0, 2]}), "per_layer", f"{ATTENTION}: query heads .* together, in groups of 2"),
        ("mixtral", of_layers(heads={0: [0, 2]}), "per_layer", "go together, in groups of 2"),
        (
            "bert", of_layers(neurons={1: []}), "uniform",
            r"a stock bert config cannot say that encoder.layer.1.output.dense is gone: use per_layer",
        ),
        ("llama", of_layers(heads={0: []}), "per_layer", "would keep 0 heads: at least 2 must stay"),
        ("bert", of_layers(neurons={0: [3, 48]}), "per_layer", r"dense has 48 neurons, keep indices reach 48"),
        ("vit", of_layers(neurons={0: [-1, 3]}), "per_layer", r"layers.0.mlp.fc2 has 48 neurons"),
        ("gpt2", lambda _: {"h.0.attn": [0]}, "per_layer", r"no site h.0.attn; it has h.0.attn.c_proj, \.\.\."),
        (
            "t5", lambda model: keep_for(model, "uniform"), "uniform",
            "a stock t5 config cannot say which heads share position biases: use per_layer",
        ),
        ("t5", of_layers(neurons={0: [1], 2: [1, 2]}), "uniform", "same number of neurons in every layer"),
        (
            "mixtral", lambda _: {f"{EXPERTS_0}.1": np.arange(40)}, "per_layer",
            rf"{EXPERTS_0}: all experts of a layer keep as many neurons, got \[40, 48\]",
        ),
        (
            "mixtral", lambda _: {f"{EXPERTS_0}.{expert}": np.arange(40 - 8 * (expert == 3)) for expert in range(4)},
            "uniform", rf"{EXPERTS_0}: all experts of a layer keep as many neurons, got \[32, 40\]",
        ),
        (
            "mixtral", lambda _: {"layers.1.mlp.gate": [2]}, "per_layer",
            r"layers.1.mlp.gate would keep 1 expert: at least 2 must stay",
        ),
        ("mixtral", lambda _: {"layers.1.mlp.gate": [2, 4]}, "per_layer", "gate has 4 experts, keep indices reach 4"),
        ("mixtral", lambda _: {"layers.1.mlp.gate": [2, 3]}, "uniform", "same number of experts in every layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_with_the_reason(
    model_type: str, keep: KeepOf, layout: Layout, message: str
) -> None:
    model = tiny_model(model_type, "AutoModel")
    with pytest.raises(ValueError, match=message):
        cut(model, {site: np.array(units, dtype=np.int64) for site, units in keep(model).items()}, layout)


@pytest.mark.parametrize("routed", [1, 2, 3])
def test_as_many_experts_stay_as_a_position_is_sent_to(routed: int, tmp_path: Path) -> None:
    model = missed(tiny_model("mixtral", "AutoModel", num_experts_per_tok=routed))
    few = {f"layers.{layer}.mlp.gate": np.arange(routed) + layer for layer in range(2)}
    again = check_equivalence(model, few, "uniform", "AutoModel", tmp_path)
    assert again.config.num_local_experts == routed == site_of(again, "expert", 0).units < EXPERTS
    with pytest.raises(ValueError, match=f"would keep {routed - 1} expert.?: at least {routed} must stay"):
        cut(model, {"layers.0.mlp.gate": np.arange(routed - 1)}, "per_layer")


def test_llama_refuses_uniform_head_counts_that_do_not_divide_the_hidden_size() -> None:
    six = {0: range(6), 1: range(6)}
    model = tiny_model("llama", "AutoModel", num_attention_heads=8, num_key_value_heads=4)
    with pytest.raises(ValueError, match=r"cannot say 6 heads: .*hidden size .32. is not a multiple"):
        cut(model, keep_of(model, heads=six), "uniform")
    mistral = tiny_model("mistral", "AutoModel", num_attention_heads=8, num_key_value_heads=4)
    small = cut(mistral, keep_of(mistral, heads=six), "uniform")
    assert small.config.num_attention_heads == 6
