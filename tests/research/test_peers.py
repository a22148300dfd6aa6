"""Other tools run beside ours: what they keep is what they cut themselves. Skipped where they are not installed."""

import copy

import numpy as np
import pytest
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.surgery.cut import cut
from research.benchmarks import quality
from research.benchmarks.peers import PEERS, OptiPFair, TorchPruning
from research.benchmarks.results import Results
from research.benchmarks.suite import read_suite
from tests.criteria.by_hand import case
from tests.research.suites import SUITE, write


@pytest.mark.parametrize("options", [{"importance": "magnitude"}, {"importance": "taylor"}, {"everywhere": True}])
def test_torch_pruning_keeps_what_it_says(options) -> None:
    pytest.importorskip("torch_pruning")
    statistics = case("bert", 16)
    before = {name: weight.clone() for name, weight in statistics.model.state_dict().items()}
    keep = TorchPruning(**options).keep(
        statistics.model, statistics.task, statistics.batches, {"neurons": 0.5, "heads": 0.5}
    )
    sites = architecture_of(statistics.model).sites(statistics.model)
    for kind in ("neuron", "head"):
        own = [site for site in sites if site.kind == kind]
        units = sum(site.units for site in own)
        assert sum(len(keep[site.name]) for site in own) == pytest.approx(units / 2, abs=len(sites))
    small = cut(statistics.model, keep, "per_layer")
    batch = statistics.batches[0]
    assert statistics.task.readout(small, batch).outputs.isfinite().all()
    assert all(torch.equal(before[name], weight) for name, weight in statistics.model.state_dict().items())


def test_magnitudes_of_torch_pruning_are_those_of_the_weights() -> None:
    pytest.importorskip("torch_pruning")
    statistics = case("bert", 16)
    model = copy.deepcopy(statistics.model)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():  # every other neuron is next to nothing
        layer.intermediate.dense.weight[::2] *= 1e-3
        layer.output.dense.weight[:, ::2] *= 1e-3
    keep = TorchPruning(importance="magnitude").keep(model, statistics.task, statistics.batches, {"neurons": 0.5})
    width = layer.intermediate.dense.out_features
    np.testing.assert_array_equal(keep["encoder.layer.0.output.dense"], np.arange(1, width, 2))
    heads = [keep.get(f"encoder.layer.{layer}.attention.output.dense", range(4)) for layer in (0, 1)]
    assert all(len(units) == model.config.num_attention_heads for units in heads)


@pytest.mark.parametrize("method", ["MAW", "L2"])
def test_optipfair_keeps_what_it_says(method) -> None:
    pytest.importorskip("optipfair")
    statistics = case("llama", 16)
    keep = OptiPFair(method=method).keep(statistics.model, statistics.task, statistics.batches, {"neurons": 0.5})
    width = statistics.model.config.intermediate_size
    assert {len(keep[f"layers.{layer}.mlp.down_proj"]) for layer in (0, 1)} == {width // 2}
    small = cut(statistics.model, keep, "uniform")
    assert statistics.task.readout(small, statistics.batches[0]).outputs.isfinite().all()


def test_heads_that_share_keys_are_refused_by_name() -> None:
    pytest.importorskip("torch_pruning")
    statistics = case("llama", 16)
    with pytest.raises(ValueError, match="no heads that share keys and values"):
        TorchPruning().keep(statistics.model, statistics.task, statistics.batches, {"neurons": 0.5})


def test_what_a_peer_cannot_do_is_said_before_any_compute(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(quality, "load_model", lambda *_: pytest.fail("a model was loaded"))
    for peer, message in (
        ("optipfair", "peer optipfair removes neurons, not heads"),
        ({"name": "torch_prunning"}, "no peer 'torch_prunning'. Did you mean 'torch_pruning'?"),
        ({"name": "torch_pruning", "importance": "size"}, "peer 'torch_pruning': importance"),
    ):
        methods = {"peer": {"peer": peer}, "sweep": SUITE["methods"]["sweep"], "magnitude": {"criterion": "magnitude"}}
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            suite = read_suite(write(tmp_path, {**SUITE, "methods": methods}))
            quality.run(suite, suite.cells(["method=peer"]), tmp_path / "rows.parquet")
    monkeypatch.setattr("research.benchmarks.peers.find_spec", lambda _: None)
    for name, peer in PEERS.items():
        with pytest.raises(ValueError, match=f"peer {name} is not installed: pip install"):
            peer().check({"neurons": 0.5})


@pytest.mark.whole
def test_a_peer_is_a_method_of_the_suite(tmp_path) -> None:
    pytest.importorskip("torch_pruning")
    methods = {"peer": {"peer": "torch_pruning"}, "magnitude": {"criterion": "magnitude"}}
    suite = read_suite(write(tmp_path, {**SUITE, "methods": methods, "planned": [], "compensations": [None]}))
    cells = suite.cells(["method=peer", "task=first"])
    quality.run(suite, cells, tmp_path / "rows.parquet")
    rows = Results(tmp_path / "rows.parquet").read()
    assert list(rows["target"]) == ["heads-0.25", "heads-0.5"]
    assert (rows["forward_tokens"] == rows["backward_tokens"]).all() and (rows["forward_tokens"] > 0).all()
    assert (rows["parameters"] < rows["dense_parameters"]).all() and rows["mean_kl"].gt(0).all()
