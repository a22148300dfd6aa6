"""What every registered compensation must do: every model type, both layouts, guarded or not."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, linear_at
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.compensation import COMPENSATIONS, DenseReference, compensate, make_compensation
from hf_mabprune.surgery.cut import Layout, cut
from tests.problems import DECODERS, problem, selection
from tests.seeds import moved
from tests.tiny_models import inputs_for, outputs_of

NAMES = COMPENSATIONS.names()
BIASES = {"llama": {"neuron", "head"}, "qwen3": {"head"}}  # that uniform checkpoints of a type can be given


def head_of(model_type: str) -> str:
    return "AutoModelForCausalLM" if model_type in DECODERS else "AutoModelForSequenceClassification"


def cut_problem(model_type: str, layout: Layout) -> tuple[DenseReference, PreTrainedModel, KeepIndices]:
    """A reference with two fitting batches and one held out, and its pruned copy."""
    model, task, batches, _ = problem(model_type)
    keep = selection(model_type, model, layout)
    return DenseReference.on(model, task, batches), cut(model, keep, layout), keep


def test_the_methods_of_the_literature_are_registered() -> None:
    assert set(NAMES) >= {"least_squares", "mask_tuning"}


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_what_is_loaded(name: str, model_type: str, layout: Layout, tmp_path: Path) -> None:
    reference, small, keep = cut_problem(model_type, layout)
    pruned, parameters = outputs_of(small, ""), small.num_parameters()
    figures = compensate(make_compensation({"name": name, "guard": False}), reference, small, keep)
    compensated = outputs_of(small, "")
    save_checkpoint(small, tmp_path, None, torch.float32)
    again = getattr(transformers, head_of(model_type)).from_pretrained(tmp_path).eval()

    assert torch.equal(outputs_of(again, ""), compensated)
    assert (compensated - pruned).abs().max() > 1e-4
    assert (type(again) is type(reference.model)) == (layout == "uniform")
    assert small.num_parameters() - parameters == figures.parameters
    for site in architecture_of(again).sites(again):
        stock = linear_at(reference.model, site.output).bias is not None
        given = layout == "per_layer" or site.kind in BIASES.get(model_type, ())
        assert (linear_at(again, site.output).bias is not None) == (stock or given)


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "llama", "mistral"])
@pytest.mark.parametrize("name", NAMES)
def test_guarded_it_never_moves_away_on_held_out_data(name: str, model_type: str, bottom_up: bool) -> None:
    reference, small, keep = cut_problem(model_type, "per_layer")
    before = {path: parameter.clone() for path, parameter in small.named_parameters()}
    dense = {path: parameter.clone() for path, parameter in reference.model.named_parameters()}
    figures = compensate(make_compensation({"name": name, "bottom_up": bottom_up}), reference, small, keep)

    assert figures.kl_after <= figures.kl_before
    assert figures.kl_after == pytest.approx(reference.divergence(small))
    assert figures.forward_tokens > 0 and figures.seconds > 0
    order = [(site.layer, site.kind) for site in figures.sites]
    assert order == [(0, "head"), (0, "neuron"), (1, "head"), (1, "neuron")], "in the order of the forward pass"
    after = dict(small.named_parameters())
    paths = {(site.layer, site.kind): f"{site.output}.weight" for site in architecture_of(small).sites(small)}
    for site in figures.sites:
        weight = next(path for path in after if path.endswith(paths[site.layer, site.kind]))
        assert torch.equal(after[weight], before[weight]) == bool(site.reason) == (not site.refitted)
        assert (site.error_after == site.error_before) == (not site.refitted)
    assert all(torch.equal(parameter, dense[path]) for path, parameter in reference.model.named_parameters())
    small(**inputs_for("")).logits.sum().backward()
    assert all(parameter.requires_grad for parameter in small.parameters()), "it can be trained on"
    assert all(parameter.grad is not None for name, parameter in small.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_cut_nothing_done(name: str) -> None:
    model, task, batches, arms = problem("bert")
    keep = arms.kept_units(np.ones(len(arms), dtype=bool))
    small = cut(model, keep, "uniform")
    figures = compensate(make_compensation(name), DenseReference.on(model, task, batches), small, keep)

    assert figures.sites == [] and figures.kl_before == figures.kl_after == 0
    assert torch.equal(outputs_of(small, ""), outputs_of(model, ""))


@pytest.mark.parametrize("name", NAMES)
def test_several_selections_share_a_reference_and_give_what_each_gives_alone(name: str) -> None:
    shared, small, keep = cut_problem("bert", "per_layer")
    other = KeepIndices(neurons={0: np.arange(20)}, heads={})
    compensate(make_compensation(name), shared, cut(shared.model, other, "per_layer"), other)
    second = compensate(make_compensation(name), shared, small, keep)
    alone, again, _ = cut_problem("bert", "per_layer")
    first = compensate(make_compensation(name), alone, again, keep)

    assert torch.equal(outputs_of(small, ""), outputs_of(again, ""))
    assert second.forward_tokens < first.forward_tokens, "the dense model's part is paid for once"


@pytest.mark.parametrize("name", NAMES)
def test_data_that_is_not_finite_leaves_every_site_alone(name: str) -> None:
    reference, small, keep = cut_problem("bert", "per_layer")
    with torch.no_grad():
        reference.model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    before = outputs_of(small, "")
    figures = compensate(make_compensation({"name": name, "guard": False}), reference, small, keep)

    assert all("not finite" in site.reason for site in figures.sites)
    assert torch.equal(outputs_of(small, ""), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("least_square", "unknown compensation 'least_square'. Did you mean 'least_squares'"),
        ({"damping": 0.1}, "compensation needs a name"),
        ({"name": "mask_tuning", "damping": 0.1}, "has no option 'damping'"),
        ({"name": "least_squares", "damping": "much"}, "damping: .*got 'much'"),
        ({"name": "least_squares", "damping": 0}, "damping must be above 0, got 0"),
        ({"name": "mask_tuning", "limit": -1}, "limit must be above 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(settings: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_compensation(settings)  # type: ignore[arg-type]


def test_every_fourth_batch_is_held_out_and_one_is_too_few() -> None:
    model, task, batches, _ = problem("bert")
    reference = DenseReference.on(model, task, batches * 2)
    assert [len(reference.batches), len(reference.held_out)] == [4, 2]
    assert reference.held_out[0] is batches[1] and all(batch is not batches[1] for batch in reference.batches[:2])
    with pytest.raises(ValueError, match="at least 2 calibration batches"):
        DenseReference.on(model, task, batches[:1])


def test_a_llama_with_new_biases_generates_the_same_from_plain_automodel(tmp_path: Path) -> None:
    reference, small, keep = cut_problem("llama", "uniform")
    compensate(make_compensation({"name": "least_squares", "guard": False}), reference, small, keep)
    save_checkpoint(small, tmp_path, None, torch.float32)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt = torch.randint(3, 16, (2, 5), generator=torch.Generator().manual_seed(moved(1)))
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}

    assert type(again) is transformers.LlamaForCausalLM
    assert again.config.mlp_bias and again.config.attention_bias
    assert not reference.model.config.mlp_bias and not reference.model.config.attention_bias
    assert again.model.layers[0].mlp.down_proj.bias.abs().max() > 0
    assert not again.model.layers[0].mlp.up_proj.bias.any() and not again.model.layers[0].self_attn.k_proj.bias.any()
    assert torch.equal(again.generate(prompt, **settings), small.generate(prompt, **settings))


def test_biases_stay_when_a_per_layer_model_is_pruned_again(tmp_path: Path) -> None:
    reference, small, keep = cut_problem("mistral", "per_layer")
    compensate(make_compensation({"name": "least_squares", "guard": False}), reference, small, keep)
    twice = cut(small, KeepIndices(neurons={0: np.arange(3)}, heads={}), "per_layer")
    save_checkpoint(twice, tmp_path, None, torch.float32)

    assert torch.equal(outputs_of(load_pruned(tmp_path).eval(), ""), outputs_of(twice, ""))
    assert torch.equal(twice.model.layers[0].mlp.down_proj.bias, small.model.layers[0].mlp.down_proj.bias)
