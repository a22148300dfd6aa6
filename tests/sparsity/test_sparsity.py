"""Zeros: how many, where, and whether they stay."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import PreTrainedModel, Trainer, TrainingArguments

from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.sparsity import sparsify
from tests.sparsity.networks import HEADS, NETWORKS, batch_for, loss_of, network, trainer

KINDS = ("unstructured", "connection", "structured")


def linear(*rows: list[float]) -> nn.Linear:
    """A linear layer of given weights."""
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight
    return layer


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scope", ["global", "module"])
def test_rates_are_exact_to_rounding(name: str, scope: str) -> None:
    model = network(name)
    sparsity = sparsify(model, 0.3, scope=scope)
    if scope == "global":
        assert sparsity.zeros == round(0.3 * sparsity.weights)
        return
    for path, share in sparsity.rates.items():
        size = model.get_submodule(path).weight.numel()
        assert round(share * size) == round(0.3 * size)


def test_global_takes_the_smallest_of_all_and_module_of_each() -> None:
    model = nn.Sequential(linear([1.0, 2.0], [3.0, 4.0]), linear([10.0, 20.0], [30.0, 40.0]))
    over_all = sparsify(copy.deepcopy(model), 0.5, scope="global", head=True)
    in_each = sparsify(model, 0.5, scope="module", head=True)
    assert over_all.rates == {"0": 1.0, "1": 0.0}
    assert in_each.rates == {"0": 0.5, "1": 0.5}
    assert model[0].weight.tolist() == [[0, 0], [3, 4]]
    assert model[1].weight.tolist() == [[0, 0], [30, 40]]


def test_each_unit_loses_the_same_number_of_connections() -> None:
    model = nn.Sequential(nn.Conv2d(5, 4, 3, bias=False))
    norms = model[0].weight.detach().abs().sum((2, 3))
    sparsity = sparsify(model, 0.4, kind="connection", head=True)
    kept = (model[0].weight != 0).flatten(2)
    assert torch.equal(kept.all(2), kept.any(2))  # a kernel slice goes as a whole
    assert kept.all(2).sum(1).tolist() == [3, 3, 3, 3]
    assert torch.equal(kept.all(2), norms >= norms.sort(1).values[:, 2:3])
    assert sparsity.achieved == 0.4


def test_slices_of_other_kernels_are_compared_by_their_mean_and_counted_by_their_weights() -> None:
    wide, narrow = nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(2, 1, 1, bias=False)
    wide.weight.data = torch.stack([torch.full((1, 3, 3), 0.1), torch.full((1, 3, 3), 1.0)])
    narrow.weight.data = torch.tensor([[[[0.5]], [[2.0]]]])
    model = nn.Sequential(wide, narrow)
    sparsity = sparsify(model, 0.46, kind="connection", scope="global", head=True)  # 9.2 of 20 weights
    assert sparsity.rates == {"0": 0.5, "1": 0.0}
    assert sparsify(model, 0.5, kind="connection", scope="global", head=True).rates == {"0": 0.5, "1": 0.5}


def test_whole_units_go_with_their_biases() -> None:
    model = nn.Sequential(linear([5.0, 5.0], [1.0, 2.0], [3.0, 3.0]))
    sparsity = sparsify(model, 1 / 3, kind="structured", head=True)
    assert sparsity.kept_units["0"].tolist() == [True, False, True]
    assert model(torch.ones(1, 2))[0, 1] == 0
    sparsity.make_permanent()
    assert model[0].bias[1] == 0 and (model[0].bias != 0).sum() == 2
    assert list(dict(model.named_parameters())) == ["0.weight", "0.bias"]


def test_first_order_is_the_weight_times_its_gradient_added_up_over_batches() -> None:
    model = nn.Sequential(linear([1.0, -2.0, 3.0, 1.0]))
    # dL/dw is the input: |w g| is 4, 2, 9, 1 on the first batch, and 0, 8, 0, 1 on the second.
    batches = [torch.tensor([[4.0, 1.0, 3.0, 1.0]]), torch.tensor([[0.0, -4.0, 0.0, 1.0]])]
    sparsify(model, 0.5, criterion="first_order", batches=batches, loss=lambda net, x: net(x).sum(), head=True)
    assert model[0].weight.tolist() == [[0, -2, 3, 0]]


@pytest.mark.parametrize("name", ["bert", "gpt2", "convolutions"])
@pytest.mark.parametrize("kind", KINDS)
def test_first_order_leaves_no_trace_but_zeros(name: str, kind: str) -> None:
    model = network(name).requires_grad_(False).train()
    frozen = next(iter(model.children())).eval()
    batches = [batch_for(model)]
    sparsity = sparsify(model, 0.25, kind=kind, criterion="first_order", batches=batches, loss=loss_of)
    assert 0 < sparsity.achieved < 0.5
    assert model.training and not frozen.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("permanent", [False, True])
def test_rates_are_of_all_and_what_is_zero_stays(criterion: str, permanent: bool) -> None:
    model = network("bert")
    first = sparsify(model, 0.4, criterion=criterion, seed=1)
    before = {name: gone == 0 for name, gone in model.state_dict().items()}
    if permanent:
        first.make_permanent()
    second = sparsify(model, 0.8, criterion=criterion, seed=2)
    assert second.zeros == round(0.8 * second.weights)
    after = {name: gone == 0 for name, gone in model.state_dict().items()}
    assert all(bool((after[name] >= gone).all()) for name, gone in before.items())


def test_random_follows_its_seed() -> None:
    zeros = []
    for seed, rate in ((0, 0.3), (0, 0.3), (1, 0.3), (0, 0.6)):
        model = network("convolutions")
        sparsify(model, rate, criterion="random", seed=seed)
        zeros.append(torch.cat([model[place].weight.flatten() == 0 for place in (0, 3, 7)]))
    assert torch.equal(zeros[0], zeros[1]) and not torch.equal(zeros[0], zeros[2])
    assert bool((zeros[3] >= zeros[0]).all())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_held_through_training(name: str, kind: str) -> None:
    model = network(name)
    sparsity = sparsify(model, 0.5, kind=kind)
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    trainer()(model, 2)
    sparsity.make_permanent()
    after = model.state_dict()
    assert not sparsity.held and after.keys() == before.keys()
    for path in sparsity.rates:
        gone, now = before[f"{path}.weight"] == 0, after[f"{path}.weight"]
        assert not now[gone].any() and not torch.signbit(now[gone]).any()
        assert torch.equal(now == 0, gone)
        assert not torch.equal(now[~gone], before[f"{path}.weight"][~gone])


def test_what_is_not_held_grows_back() -> None:
    zeros = {}
    for held in (True, False):
        model = network("bert")
        sparsity = sparsify(model, 0.5, held=held)
        assert sparsity.achieved == 0.5 and sparsity.held == held
        trainer()(model, 2)
        zeros[held] = sparsity.achieved
    assert zeros[True] == 0.5 and zeros[False] < 0.4


def test_an_optimizer_from_before_goes_on() -> None:
    model = network("convolutions")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = batch_for(model)
    for part in ("dense", "sparse"):
        if part == "sparse":
            sparsity = sparsify(model, 0.5)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    assert sparsity.achieved == 0.5


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["unstructured", "connection"])
def test_what_a_trainer_saves_on_the_way_is_an_ordinary_checkpoint(kind: str, tmp_path: Path) -> None:
    model = network("bert")
    sparsity = sparsify(model, 0.5, kind=kind)
    batch = batch_for(model)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, save_steps=2, weight_decay=0.1, learning_rate=0.01, use_cpu=True, report_to=[]
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert sparsity.achieved == pytest.approx(0.5, abs=0.02)  # units have odd numbers of inputs
    sparsity.make_permanent()
    model.save_pretrained(tmp_path / "end")
    for folder in ("checkpoint-2", "end"):
        stored = getattr(transformers, HEADS["bert"]).from_pretrained(tmp_path / folder)
        assert set(stored.state_dict()) == set(model.state_dict())
        for path in sparsity.rates:
            assert torch.equal(stored.get_submodule(path).weight == 0, model.get_submodule(path).weight == 0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("held", [True, False])
def test_stored_models_keep_their_zeros(name: str, held: bool, tmp_path: Path) -> None:
    model = network(name)
    assert isinstance(model, PreTrainedModel)
    sparsity = sparsify(model, 0.5, held=held)
    model.save_pretrained(tmp_path)
    stored = load_pruned(tmp_path)
    twin = copy.deepcopy(model)
    assert not twin.load_state_dict(stored.state_dict()).missing_keys
    sparsity.make_permanent()
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored.state_dict()[path])
        assert torch.equal(tensor, twin.state_dict()[path])


def test_what_counts_and_what_does_not() -> None:
    left_out = {name: sparsify(network(name), 0.5).left_out for name in NETWORKS}
    assert left_out["bert"] == {"classifier": "the last layer"}
    assert left_out["gpt2"] == {"lm_head": "the last layer"}
    assert left_out["convolutions"] == {"8": "the last layer"}
    tied = sparsify(network("gpt2"), 0.5, head=True)
    assert tied.left_out == {"lm_head": "its weights are tied to those of another module"}
    some = sparsify(network("bert"), 0.5, exclude=["bert.encoder.layer.0", "*.output.dense"], head=True)
    assert not [path for path in some.rates if "layer.0" in path or path.endswith("output.dense")]
    assert "classifier" in some.rates
    base = sparsify(network("bert").bert, 0.5)  # type: ignore[arg-type]
    assert not base.left_out and "pooler.dense" in base.rates
    odd = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    assert set(sparsify(odd, 0.5, head=True).rates) == {"2"}


def broken(change: str) -> nn.Module:
    """A network that cannot take zeros."""
    model = network("convolutions")
    if change == "mask":
        prune.l1_unstructured(model[0], "weight", amount=0.5)
    elif change == "nan":
        model[3].weight.data[0] = torch.nan
    elif change == "meta":
        model[3].to("meta")
    elif change == "packed":
        model[7].weight = nn.Parameter(torch.ones(10, 12, dtype=torch.int8), requires_grad=False)
    elif change == "nothing":
        return nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2))
    return model


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ("", {"rate": 1.0}, "rate must be in [0, 1), got 1.0"),
        ("", {"rate": float("nan")}, "rate must be in [0, 1), got nan"),
        ("", {"kind": "filters"}, "kind must be one of unstructured, connection, structured, got 'filters'"),
        ("", {"criterion": "l1"}, "criterion must be one of magnitude, first_order, random, got 'l1'"),
        ("", {"kind": "structured", "scope": "unit"}, "scope of structured must be one of module, global, got 'unit'"),
        ("", {"criterion": "first_order"}, "first_order needs"),
        ("", {"criterion": "first_order", "batches": [], "loss": loss_of}, "one batch or more, got none"),
        ("", {"criterion": "first_order", "batches": [1]}, "batches must be mappings"),
        (
            "",
            {"criterion": "first_order", "batches": [0], "loss": lambda net, _: net[3].weight.sum() * torch.nan},
            "gradients of 3 are not finite",
        ),
        ("", {"exclude": ["features"]}, "exclude names modules of the model, got 'features'"),
        ("mask", {}, "0 has a mask of torch.nn.utils.prune already"),
        ("nan", {}, "3 holds weights that are not finite"),
        ("meta", {}, "3 is on the meta device"),
        ("packed", {}, "7 holds torch.int8: packed weights cannot be pruned"),
        ("nothing", {}, "no linear layer or convolution is left to prune (1: the last layer)"),
    ],
)
def test_bad_input_gets_one_clear_message(change: str, options: dict[str, Any], says: str) -> None:
    model = broken(change)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=re.escape(says)):
        sparsify(model, **{"rate": 0.5, **options})
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
