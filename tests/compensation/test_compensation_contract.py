"""What every registered compensation must do: every model type, both layouts, guarded or not."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, projection_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.compensation import COMPENSATIONS, DenseReference, compensate, make_compensation
from hf_mabprune.effects.finished_layers import FinishedLayers
from hf_mabprune.surgery.cut import Layout, cut
from tests.problems import problem, selection
from tests.seeds import moved
from tests.tiny_models import NOTHING, deeper, head_of, inputs_for, keep_of, outputs_of
from tests.tiny_sizes import UNLIKE

NAMES = COMPENSATIONS.names()
BIASES = {  # that uniform checkpoints of a type can be given
    "llama": {"neuron", "head"},
    "qwen3": {"head"},
    "gemma3_text": {"head"},
}


def cut_problem(model_type: str, layout: Layout) -> tuple[DenseReference, PreTrainedModel, KeepIndices]:
    """A reference with two fitting batches and one held out, and its pruned copy."""
    model, task, batches, _ = problem(model_type)
    keep = selection(model, layout)
    return DenseReference.on(model, task, batches), cut(model, keep, layout), keep


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("model_type", UNLIKE)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_what_is_loaded(name: str, model_type: str, layout: Layout, tmp_path: Path) -> None:
    reference, small, keep = cut_problem(model_type, layout)
    pruned, parameters = outputs_of(small), small.num_parameters()
    figures = compensate(make_compensation({"name": name, "guard": False}), reference, small, keep)
    compensated = outputs_of(small)
    save_checkpoint(small, tmp_path, None, torch.float32)
    again = getattr(transformers, head_of(model_type)).from_pretrained(tmp_path).eval()

    assert torch.equal(outputs_of(again), compensated)
    assert (compensated - pruned).abs().max() > 1e-4
    assert (type(again) is type(reference.model)) == (layout == "uniform")
    assert small.num_parameters() - parameters == figures.parameters
    for site in architecture_of(again).sites(again):
        stock = projection_of(reference.model, site).bias is not None if site.kind != "expert" else False
        given = layout == "per_layer" or site.kind in BIASES.get(model_type, ())
        given = given and site.kind != "expert" and site.expert is None
        assert (projection_of(again, site).bias is not None) == (stock or given)


@pytest.mark.parametrize("bottom_up", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "llama", "mistral", "gpt2", "mixtral", "t5", "vit", "opt"])
@pytest.mark.parametrize("name", NAMES)
def test_guarded_it_never_moves_away_on_held_out_data(name: str, model_type: str, bottom_up: bool) -> None:
    reference, small, keep = cut_problem(model_type, "per_layer")
    before = {path: parameter.clone() for path, parameter in small.named_parameters()}
    dense = {path: parameter.clone() for path, parameter in reference.model.named_parameters()}
    figures = compensate(make_compensation({"name": name, "bottom_up": bottom_up}), reference, small, keep)

    assert figures.kl_after <= figures.kl_before
    assert figures.kl_after == pytest.approx(reference.divergence(small))
    assert figures.forward_tokens > 0 and figures.seconds > 0
    # Of a layer with experts those that stay are refitted together, as the site of their router.
    sites = [site for site in architecture_of(reference.model).sites(reference.model) if site.expert is None]
    assert [site.site for site in figures.sites] == [site.name for site in sites], "in the order of the forward pass"
    if model_type not in ("t5", "mixtral"):
        order = [(site.layer, site.kind) for site in figures.sites]
        assert order == [(0, "head"), (0, "neuron"), (1, "head"), (1, "neuron")]
    after = dict(small.named_parameters())
    for site in figures.sites:
        where = site.site.replace("gate", "experts.down_proj") if site.kind == "expert" else f"{site.site}.weight"
        weight = next(path for path in after if path.endswith(where))
        assert torch.equal(after[weight], before[weight]) == bool(site.reason) == (not site.refitted)
        assert (site.error_after == site.error_before) == (not site.refitted)
    assert all(torch.equal(parameter, dense[path]) for path, parameter in reference.model.named_parameters())
    inputs = inputs_for(small)
    small(**inputs).logits.sum().backward()
    assert all(parameter.requires_grad for parameter in small.parameters()), "it can be trained on"
    assert all(parameter.grad is not None for name, parameter in small.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES.names() if head_of(name) != "AutoModel"])
def test_the_default_refits_every_type(model_type: str) -> None:
    model, task, batches, _ = problem(model_type)
    sites = [site for site in architecture_of(model).sites(model) if site.kind == "head" or not site.tie]
    keep = {site.name: np.arange(site.units - site.group) for site in sites if site.units > site.group}
    reference, small = DenseReference.on(model, task, batches), cut(model, keep, "per_layer")
    figures = compensate(make_compensation({"name": "least_squares", "guard": False}), reference, small, keep)
    assert {site.site for site in figures.sites} == keep.keys() and np.isfinite(figures.kl_after)
    assert any(site.refitted for site in figures.sites)


@pytest.mark.parametrize("model_type", ["bert", "llama", "qwen2", "gpt2", "mixtral", "t5", "vit"])
def test_where_layers_went_all_behind_them_makes_up_for_it(model_type: str) -> None:
    model, task, batches, _ = problem(model_type, **deeper(model_type))
    first = architecture_of(model).whole_layers(model)[0]
    keep = {first.name: NOTHING}
    keys = [("calibration", number, 0) for number in range(len(batches))]
    reference, small = DenseReference(model, task, batches, batches, keys), cut(model, keep, "uniform")
    figures = compensate(make_compensation({"name": "least_squares", "guard": False}), reference, small, keep)
    layers = {layer.path: layer.depth for layer in architecture_of(model).layers(model)}
    behind = {path for path, depth in layers.items() if depth > layers[first.name]}
    assert {path for path in layers for site in figures.sites if site.site.startswith(f"{path}.")} == behind
    assert all(site.error_after < site.error_before for site in figures.sites if site.refitted)
    small = cut(model, keep, "uniform")
    quick = compensate(make_compensation({"name": "least_squares", "bottom_up": False}), reference, small, keep)
    assert not quick.sites and quick.kl_after == quick.kl_before, "nothing that stays has lost an input"


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "mixtral", "t5"])
def test_layers_that_are_finished_need_not_run_again(model_type: str) -> None:
    reference, small, _ = cut_problem(model_type, "per_layer")
    finished, whole = FinishedLayers(small, reference.task, reference.held_out), reference.divergence(small)
    layers = architecture_of(small).layers(small)
    ran: list[str] = []
    for layer in layers:
        module = small.base_model.get_submodule(layer.path)
        for inner in module.modules():
            if isinstance(inner, torch.nn.Linear | Conv1D):
                inner.register_forward_hook(lambda *_, path=layer.path: ran.append(path))
    for count in (0, 1, len(layers) - 1, len(layers)):  # of T5 the third is of the decoder
        finished.raise_to(count)
        ran.clear()
        assert reference.divergence(small, finished=finished) == pytest.approx(whole, rel=1e-6)
        assert set(ran) == {layer.path for layer in layers[count:]}
        assert finished.share == count / len(layers)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_cut_nothing_done(name: str) -> None:
    model, task, batches, arms = problem("bert")
    keep = arms.kept_units(np.ones(len(arms), dtype=bool))
    small = cut(model, keep, "uniform")
    figures = compensate(make_compensation(name), DenseReference.on(model, task, batches), small, keep)

    assert figures.sites == [] and figures.kl_before == figures.kl_after == 0
    assert torch.equal(outputs_of(small), outputs_of(model))


@pytest.mark.parametrize("name", NAMES)
def test_several_selections_share_a_reference_and_give_what_each_gives_alone(name: str) -> None:
    shared, small, keep = cut_problem("bert", "per_layer")
    other = keep_of(shared.model, {0: range(20)})
    compensate(make_compensation(name), shared, cut(shared.model, other, "per_layer"), other)
    second = compensate(make_compensation(name), shared, small, keep)
    alone, again, _ = cut_problem("bert", "per_layer")
    first = compensate(make_compensation(name), alone, again, keep)

    assert torch.equal(outputs_of(small), outputs_of(again))
    assert second.forward_tokens < first.forward_tokens, "the dense model's part is paid for once"


@pytest.mark.parametrize("name", NAMES)
def test_data_that_is_not_finite_leaves_every_site_alone(name: str) -> None:
    reference, small, keep = cut_problem("bert", "per_layer")
    with torch.no_grad():
        reference.model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    before = outputs_of(small)
    figures = compensate(make_compensation({"name": name, "guard": False}), reference, small, keep)

    assert all("not finite" in site.reason for site in figures.sites)
    assert torch.equal(outputs_of(small), before)


@pytest.mark.parametrize("name", NAMES)
def test_refits_that_no_held_out_data_can_judge_are_not_taken(name: str) -> None:
    reference, small, keep = cut_problem("bert", "per_layer")
    for batch in reference.held_out:  # of an id whose embedding is broken, and that no other batch has
        batch["input_ids"][:] = 20
    with torch.no_grad():
        for model in (reference.model, small):
            model.bert.embeddings.word_embeddings.weight[20] = torch.nan
    before = outputs_of(small)
    figures = compensate(make_compensation(name), reference, small, keep)

    assert figures.sites and all("not finite" in site.reason for site in figures.sites)
    assert torch.equal(outputs_of(small).nan_to_num(), before.nan_to_num())


def test_a_refit_beyond_the_range_of_half_precision_is_not_taken() -> None:
    reference, small, keep = cut_problem("bert", "per_layer")
    small.half()
    for site in keep:
        layer = reference.model.bert.get_submodule(site)
        with torch.no_grad():
            layer.weight.mul_(1e6)
    figures = compensate(make_compensation({"name": "least_squares", "guard": False}), reference, small, keep)

    assert all("beyond the range of float16" in site.reason for site in figures.sites)
    assert all(bool(weight.isfinite().all()) for weight in small.parameters())


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


def test_a_refit_reads_small_batches_whole_and_gives_what_their_parts_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task, batches, _ = problem("bert")
    for batch in batches:
        batch["attention_mask"][1:, 3:] = 0
    keep, found = selection(model, "per_layer"), []
    for small_batch in (0, 128):
        monkeypatch.setattr("hf_mabprune.compensation.dense_reference.SMALL", small_batch)
        reference, small = DenseReference.on(model, task, batches), cut(model, keep, "per_layer")
        compensate(make_compensation({"name": "least_squares", "guard": False}), reference, small, keep)
        found.append((len(reference.batches), outputs_of(small)))
    (parts, split), (whole, together) = found
    assert parts == 8 and whole == 2
    torch.testing.assert_close(split, together, rtol=1e-3, atol=1e-4)


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
    twice = cut(small, keep_of(small, {0: range(3)}), "per_layer")
    save_checkpoint(twice, tmp_path, None, torch.float32)

    assert torch.equal(outputs_of(load_pruned(tmp_path).eval()), outputs_of(twice))
    assert torch.equal(twice.model.layers[0].mlp.down_proj.bias, small.model.layers[0].mlp.down_proj.bias)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_run_several_times_are_refitted_to_the_dense_model(name: str) -> None:
    reference, small, keep = cut_problem("albert", "per_layer")
    figures = compensate(make_compensation({"name": name, "guard": False}), reference, small, keep)
    assert {site.site for site in figures.sites} == keep.keys()
    assert all(site.refitted and site.error_after < site.error_before for site in figures.sites)
    reference, small, keep = cut_problem("albert", "per_layer")
    figures = compensate(make_compensation(name), reference, small, keep)
    assert figures.kl_after <= figures.kl_before
