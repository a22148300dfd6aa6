"""The MLP of the study: its hidden layers follow one another, so that one matrix lies between two sites."""

import hashlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints.load import load_pruned, register_auto_classes
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.cli.commands import main
from hf_mabprune.compensation import DenseReference, compensate, make_compensation
from hf_mabprune.config import check
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.plugins import load_plugin
from hf_mabprune.runtime.resume import RunState
from hf_mabprune.runtime.signals import Interrupted
from hf_mabprune.surgery.cut import Layout, cut
from hf_mabprune.surgery.pieces import pieces
from hf_mabprune.tasks.batch import Batch
from tests.problems import apart, arms_of, pull_all, some_context
from tests.research.studies.small_table import small_table
from tests.seeds import moved

PAPER = Path(__file__).parents[3] / "research" / "studies" / "paper"
PLUGIN = "research.studies.paper.mlp"
WIDTH = 12


@pytest.fixture(scope="module")
def family() -> Iterator[ModuleType]:
    """The plugin, loaded as `--plugin` loads it, and forgotten afterwards."""
    with apart(PAPER):
        load_plugin(PLUGIN)
        yield sys.modules[PLUGIN]


@pytest.fixture(params=["classification", "regression"])
def problem(family: ModuleType, request: pytest.FixtureRequest) -> tuple[PreTrainedModel, Any, list[Batch]]:
    """A random model of three hidden layers, its task, and three batches of rows."""
    from hf_mabprune.tasks.sampling import batches_of
    from research.studies.paper.tables import data_sets, splits
    from research.studies.paper.train import untrained

    table = small_table(request.param == "classification")
    split = next(splits(table))
    torch.manual_seed(moved(0))
    model, task = untrained(table, split, hidden_size=WIDTH, hidden_layers=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.6 * torch.randn_like(parameter))
    batches = batches_of(task, task.encode(data_sets(table, split)["train"]), 16)[:3]
    return model.eval(), task, list(batches)


def keep_of(model: PreTrainedModel, layout: Layout) -> KeepIndices:
    sites = architecture_of(model).sites(model)
    counts = [7, 7, 7] if layout == "uniform" else [9, 5, 7]
    return {site.name: np.arange(at, at + count) for at, (site, count) in enumerate(zip(sites, counts, strict=True))}


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_masked_equals_pruned_equals_reloaded(
    problem: tuple[PreTrainedModel, Any, list[Batch]], layout: Layout, tmp_path: Path
) -> None:
    (model, task, batches), keep = problem, keep_of(problem[0], layout)
    assert list(keep) == ["network.2", "network.4", "network.6"]
    inputs = task.inputs(batches[0])
    with torch.no_grad():
        with masked(model, masks=keep_masks(model, keep)):
            by_mask = model(**inputs).logits
        small = cut(model, keep, layout)
        save_checkpoint(small, tmp_path, task.processor, torch.float32)
        register_auto_classes()
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert (by_mask - small(**inputs).logits).abs().max() < 1e-5
        assert torch.equal(small(**inputs).logits, again(**inputs).logits)
        assert (model(**inputs).logits - by_mask).abs().max() > 1e-4
    assert type(again).__name__.removeprefix("Mabprune") == type(model).__name__
    assert (type(again) is type(model)) == (layout == "uniform")
    assert type(load_pruned(tmp_path)) is type(again)
    handed_on = {name: weight for piece in pieces(model, keep, layout) for name, weight in piece.items()}
    assert handed_on.keys() == small.state_dict().keys()
    assert all(torch.equal(weight, handed_on[name]) for name, weight in small.state_dict().items())


def test_replayed_pulls_equal_reference_pulls(problem: tuple[PreTrainedModel, Any, list[Batch]]) -> None:
    model, task, batches = problem
    arms = arms_of(model, 2, batches)
    assert len(arms) == 3 * WIDTH // 2
    for reward in ("kl", "loss"):
        slow = pull_all(ReferencePulls(model, arms, task, batches, reward), some_context(arms))
        fast = pull_all(ReplayPulls(model, arms, task, batches, reward), some_context(arms))
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=2e-5)
        assert np.abs(slow).max() > 1e-4


@pytest.mark.parametrize("bottom_up", [False, True])
def test_a_refit_makes_up_for_neurons_that_others_repeat(
    problem: tuple[PreTrainedModel, Any, list[Batch]], bottom_up: bool
) -> None:
    """Every neuron of the second half does what one of the first does, so nothing is lost but their share."""
    model, task, batches = problem
    half = WIDTH // 2
    with torch.no_grad():
        for number in (0, 2, 4):
            for parameter in model.network[number].parameters():
                parameter[half:] = parameter[:half]
    keep = {site.name: np.arange(half) for site in architecture_of(model).sites(model)}
    reference, small = DenseReference.on(model, task, batches), cut(model, keep, "per_layer")
    method = {"name": "least_squares", "bottom_up": bottom_up, "both_sides": bottom_up, "damping": 1e-9}
    figures = compensate(make_compensation(method), reference, small, keep)
    assert figures.kl_before > 1e-4
    assert figures.kl_after < 0.01 * figures.kl_before
    assert [site.site for site in figures.sites if site.refitted] == list(keep)
    errors = [(site.error_before, site.error_after) for site in figures.sites]
    assert all(after < 0.1 * before for before, after in errors), errors


def settings(folder: Path) -> str:
    """Trains a model and describes a small run on it; gives the path of the config."""
    from research.studies.paper.tables import data_sets, splits
    from research.studies.paper.train import RECIPE, fit

    table = small_table()
    split = next(splits(table))
    model, task = fit(table, split, RECIPE, hidden_size=WIDTH)[:2]
    model.save_pretrained(folder / "model")
    task.processor.save_pretrained(folder / "model")
    files = {name: str(folder / f"{name}.parquet") for name in ("train", "validation", "test")}
    for name, rows in data_sets(table, split).items():
        rows.to_parquet(files[name])
    made = check(
        {
            "model": {"name": str(folder / "model")},
            "task": {"dataset": {"path": "parquet", "data_files": files}, "batch_size": 8},
            "prune": {"arms": ["neuron"], "target": {"neurons": 0.5}, "block_size": 2, "layout": "per_layer"},
            "search": {"rounds": 2, "pulls_per_arm": 2, "policy": {"name": "ucb1"}},
            "recovery": {"max_steps": 2},
            "output": {"dir": str(folder / "out"), "random_seeds": 1},
        }
    )
    (folder / "run.yaml").write_text(made.to_yaml())
    return str(folder / "run.yaml")


def outcome(folder: Path) -> tuple[Any, ...]:
    """Selection and weights of a finished run."""
    arms = pd.read_parquet(folder / "mabprune" / "arms.parquet")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return arms[["kept", "order", "pulls"]].to_numpy().tolist(), weights


@pytest.mark.whole
def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_is_not(
    family: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    without_figures: None,
) -> None:
    config, keep = settings(tmp_path), RunState.keep
    command = ["prune", "--plugin", PLUGIN, "--config", config]
    assert main([*command, "--output.dir", str(tmp_path / "whole")]) == 0

    def stop(self: RunState, search: Any, round_ended: bool) -> None:
        keep(self, search, round_ended)
        if round_ended:
            raise Interrupted(signal.SIGINT, self.resume_command)

    command += ["--output.dir", str(tmp_path / "stopped")]
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "keep", stop)
        assert main(command) == 128 + signal.SIGINT
    assert main([*command, "--resume"]) == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    small = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert sum(site.units for site in architecture_of(small).sites(small)) == WIDTH, "half of twice as many"
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "from hf_mabprune import TableProcessor" in card and "tabular-classification" in card
    assert "Transformers does not know model type `tabular_mlp`" in card and "trust_remote_code=True" not in card
    assert main(["verify", "--plugin", PLUGIN, str(tmp_path / "whole"), "--base", str(tmp_path / "model")]) == 0
    assert "\nshapes: ok" in capsys.readouterr().out


def test_a_network_without_hidden_layers_is_refused(family: ModuleType) -> None:
    with pytest.raises(Exception, match="hidden_layers must be from 1 to 8, got 0"):
        family.TabularMLPConfig(hidden_layers=0)
