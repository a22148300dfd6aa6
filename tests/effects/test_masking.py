"""head_mask and neuron_mask: old semantics, per-example masks, gradients, and no trace left."""

import pytest
import torch

from hf_mabprune import masked
from hf_mabprune.architectures import architecture_of
from tests.problems import problem
from tests.seeds import moved
from tests.tiny_models import inputs_for, tiny_model

HEAD = "AutoModelForSequenceClassification"


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2"])
def test_one_mask_an_example_equals_one_forward_an_example(model_type: str) -> None:
    model = tiny_model(model_type, HEAD)
    inputs = inputs_for(model, HEAD)
    generator = torch.Generator().manual_seed(moved(5))
    heads = torch.randint(0, 2, (2, 2, 4), generator=generator).float()  # [L, B, H]
    neurons = torch.randint(0, 2, (2, 48), generator=generator).float()  # [B, F]
    with torch.no_grad():
        with masked(model, head_mask=heads, neuron_mask={1: neurons}):
            together = model(**inputs).logits
        for row in range(2):
            one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
            with masked(model, head_mask=heads[:, row], neuron_mask={1: neurons[row]}):
                alone = model(**one).logits
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


def test_a_head_mask_for_all_layers_equals_the_same_mask_in_each() -> None:
    model = tiny_model("bert", HEAD)
    inputs = inputs_for(model, HEAD)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    with torch.no_grad():
        with masked(model, head_mask=mask):
            short = model(**inputs).logits
        with masked(model, head_mask=torch.stack([mask, mask])):
            full = model(**inputs).logits
        with masked(model, head_mask={0: mask, 1: mask}):
            named = model(**inputs).logits
    assert torch.equal(short, full) and torch.equal(short, named)


def test_a_masked_head_is_the_value_projection_without_its_rows() -> None:
    model = tiny_model("bert", HEAD)
    inputs = inputs_for(model, HEAD)
    mask = torch.ones(2, 4)
    mask[1, 2] = 0
    with torch.no_grad():
        with masked(model, head_mask=mask):
            by_mask = model(**inputs).logits
        value = model.bert.encoder.layer[1].attention.self.value
        value.weight[16:24], value.bias[16:24] = 0, 0
        torch.testing.assert_close(by_mask, model(**inputs).logits, atol=1e-6, rtol=0)


def test_gradients_flow_to_the_masks() -> None:
    model = tiny_model("qwen2", HEAD)
    inputs = inputs_for(model, HEAD)
    gates = torch.ones(48, requires_grad=True)
    with masked(model, neuron_mask={0: gates}):
        model(**inputs).logits.sum().backward()
    step = torch.ones(48)
    step[7] += 1e-2
    with torch.no_grad():
        with masked(model, neuron_mask={0: step}):
            moved = model(**inputs).logits.sum()
        slope = (moved - model(**inputs).logits.sum()) / 1e-2
    assert gates.grad is not None
    assert float(gates.grad[7]) == pytest.approx(float(slope), rel=0.05, abs=1e-4)


def test_masks_come_off_even_when_the_forward_fails() -> None:
    model = tiny_model("bert", HEAD)
    inputs = inputs_for(model, HEAD)
    with torch.no_grad():
        before = model(**inputs).logits
        with pytest.raises(IndexError), masked(model, neuron_mask={0: torch.zeros(48)}):
            model(input_ids=torch.tensor([[9999]]))
        assert torch.equal(before, model(**inputs).logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_mask_of_the_wrong_size_is_refused() -> None:
    model = tiny_model("bert", HEAD)
    with (
        pytest.raises(ValueError, match=r"encoder\.layer\.0\.output\.dense has 48 neurons, the mask has 47"),
        masked(model, neuron_mask={0: torch.ones(47)}),
    ):
        pass


@pytest.mark.parametrize("model_type", ["mixtral", "t5", "vit"])
def test_masks_by_site_are_an_example_each_for_every_kind(model_type: str) -> None:
    model, task, (batch, *_), arms = problem(model_type)
    generator = torch.Generator().manual_seed(moved(5))
    masks = {}
    for site, rows in arms.groups():
        units = int(arms.stop[rows[-1]])
        masks[site] = torch.randint(0, 2, (batch.examples, units), generator=generator).float()
        if site.endswith("gate"):
            masks[site][:, :3] = 1  # a router sends every position to two
    with torch.no_grad():
        with masked(model, masks=masks):
            together = task.readout(model, batch).outputs
        for row in range(batch.examples):
            with masked(model, masks={site: mask[row] for site, mask in masks.items()}):
                alone = task.readout(model, batch.rows(slice(row, row + 1))).outputs
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2"])
def test_a_layer_that_is_masked_hands_on_what_it_was_given(model_type: str) -> None:
    model, inputs = tiny_model(model_type, HEAD), inputs_for(tiny_model(model_type, HEAD), HEAD)
    (site,) = architecture_of(model).whole_layers(model)
    with torch.no_grad():
        dense = model(**inputs).logits
        with masked(model, masks={site.name: torch.ones(1)}):
            assert torch.equal(model(**inputs).logits, dense)
        with masked(model, masks={site.name: torch.tensor([[1.0], [0.0]])}):
            mixed = model(**inputs).logits
        module = model.base_model.get_submodule(site.name)
        hook = module.register_forward_hook(
            lambda _, given, made: (given[0], *made[1:]) if isinstance(made, tuple) else given[0]
        )
        gone = model(**inputs).logits
        hook.remove()
        assert torch.equal(model(**inputs).logits, dense)
    torch.testing.assert_close(mixed, torch.stack([dense[0], gone[1]]), atol=1e-6, rtol=0)
    assert not torch.equal(gone, dense)
    mask = torch.ones(2, 1, requires_grad=True)
    with masked(model, masks={site.name: mask}):
        model(**inputs).logits.sum().backward()
    assert (mask.grad.abs() > 0).all()
