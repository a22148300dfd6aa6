"""What an optimizer holds is cut as the parameters are, whatever holds the weights of a site."""

import copy

import pytest
import torch

from hf_mabprune.arms import KeepIndices
from hf_mabprune.surgery.cut import Layout, cut
from hf_mabprune.surgery.in_training import check_states, cut_optimizer, give_biases, new_biases, take_over
from tests.problems import selection
from tests.tiny_models import NOTHING, deep_model, head_of, outputs_of, tiny_model
from tests.tiny_sizes import UNLIKE


def with_states(model: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimizer whose states say of every entry of a weight which one it is."""
    vectors, matrices = ([p for p in model.parameters() if (p.ndim < 2) == small] for small in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    )
    for parameter in model.parameters():
        moments = {"exp_avg": 2 * parameter.detach() + 1, "exp_avg_sq": parameter.detach().square()}
        optimizer.state[parameter] = {"step": torch.tensor(7.0), **moments}
    return optimizer


def check_follows(optimizer: torch.optim.Optimizer, small: torch.nn.Module, before: int) -> None:
    """All parameters are trained, each once, in the order of the model, with the states of their own entries."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    place = {parameter: number for number, parameter in enumerate(small.parameters())}
    assert {*own} == {*place} and len(own) == len(place)
    for group in optimizer.param_groups:
        places = [place[parameter] for parameter in group["params"]]
        assert places == sorted(places)
    for parameter, state in optimizer.state.items():
        assert torch.equal(state["exp_avg"], 2 * parameter.detach() + 1)
        assert torch.equal(state["exp_avg_sq"], parameter.detach().square()) and state["step"] == 7
    assert len(optimizer.state) == before, "what was there goes on"


@pytest.mark.parametrize("model_type", UNLIKE)
def test_states_are_cut_as_weights_are(model_type: str) -> None:
    model = tiny_model(model_type, head_of(model_type))
    keep, count = selection(model, "per_layer"), len(list(model.parameters()))
    optimizer, weights = with_states(model), copy.deepcopy(model.state_dict())
    small = cut(model, keep, "per_layer")
    cut_optimizer(optimizer, model, small, keep)
    check_follows(optimizer, small, count)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_states_of_layers_that_are_gone_go_with_them() -> None:
    model = deep_model("llama")
    optimizer, keep = with_states(model), {"layers.1": NOTHING}
    small = cut(model, keep, "uniform")
    cut_optimizer(optimizer, model, small, keep)
    check_follows(optimizer, small, len(list(small.parameters())))
    assert new_biases(model, small, keep) == []


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_bias_that_a_refit_gave_is_trained_without_decay_and_given_again(layout: Layout) -> None:
    model = tiny_model("llama", head_of("llama"))
    optimizer, count = with_states(model), len(list(model.parameters()))
    keep: KeepIndices = selection(model, layout)
    small, again = (cut(model, keep, layout) for _ in range(2))
    give_biases(small, ["layers.0.mlp.down_proj"])
    biases = new_biases(model, small, keep)
    cut_optimizer(optimizer, model, small, keep)
    check_follows(optimizer, small, count)
    assert "layers.0.mlp.down_proj" in biases
    decayed, plain = (group["params"] for group in optimizer.param_groups)
    given = small.get_submodule("model.layers.0.mlp.down_proj").bias
    assert any(given is each for each in plain) and not any(given is each for each in decayed)
    give_biases(again, biases)
    assert [(n, p.shape) for n, p in again.named_parameters()] == [(n, p.shape) for n, p in small.named_parameters()]
    assert again.config.to_dict() == small.config.to_dict()
    with pytest.raises(ValueError, match=r"no site layers.9 that can have"):
        give_biases(again, ["layers.9"])


def test_the_object_stays_and_computes_what_the_smaller_model_does() -> None:
    model = tiny_model("bert", head_of("bert"))
    small = cut(model, selection(model, "per_layer"), "per_layer")
    expected = outputs_of(small)
    take_over(model, small)
    assert torch.equal(outputs_of(model), expected) and type(model) is type(small)


def test_an_optimizer_of_rows_and_columns_is_refused() -> None:
    model = tiny_model("bert", head_of("bert"))
    optimizer = torch.optim.Adafactor(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises(ValueError, match=r"keeps row_var of shape .* cannot be cut along .* e.g. AdamW"):
        check_states(optimizer)
