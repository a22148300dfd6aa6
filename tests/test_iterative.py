"""Pruning in stages, with training between them: it ends where its parts say, and takes up where it was left."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from hf_mabprune import PruneResult, iterative, load_pruned
from hf_mabprune.config import PruneConfig, RecoveryConfig
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.evaluation.report import Report
from hf_mabprune.iterative import Stage, share
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.recut import cut_run
from tests.problems import settings_for, write_splits

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
TRAINING = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "stages": 2}
SEARCH = {"rounds": None, "pulls_per_arm": 1, "rule": {"moves": 4}, "policy": {"name": "race"}}
Weights = dict[str, torch.Tensor]


def staged(folder: Path, files: dict[str, str], model_type: str = "bert", **changes: Any) -> PruneConfig:
    return settings_for(folder, files, model_type, **{"recovery": TRAINING, "search": SEARCH, **changes})


@dataclass
class Watched:
    """A run in two stages, and what went through each.

    Attributes:
        searched: Weights that each search began with.
        left: Weights that each stage left.
        taught: Model that taught each training.
    """

    settings: PruneConfig
    folder: Path
    result: PruneResult | None = None
    searched: list[Weights] = field(default_factory=list)
    left: list[Weights] = field(default_factory=list)
    taught: list[PreTrainedModel] = field(default_factory=list)


def weights_of(model: PreTrainedModel) -> Weights:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run of an encoder with per-layer sizes."""
    folder = tmp_path_factory.mktemp("iterative")
    run = Watched(staged(folder, write_splits(folder)), folder / "out")
    search, cut = iterative.search, Stage.cut

    def watched_search(session, plans, state):
        run.searched.append(weights_of(session.dense))
        return search(session, plans, state)

    def watched_cut(self, *arguments):
        run.taught.append(self.dense.dense)
        after = cut(self, *arguments)
        run.left.append(weights_of(after.model))
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterative, "search", watched_search)
        patch.setattr(Stage, "cut", watched_cut)
        run.result = prune_from_config(run.settings)
    return run


@pytest.mark.parametrize(
    ("model_type", "layout", "target"),
    [
        ("bert", "per_layer", {"neurons": 0.5, "heads": 0.5}),
        ("bert", "uniform", {"neurons": 0.5}),  # whose config cannot say fewer heads
        ("llama", "per_layer", {"neurons": 0.5, "heads": 0.5}),
        ("llama", "uniform", {"neurons": 0.5, "heads": 0.5}),
        ("gpt2", "per_layer", {"neurons": 0.5, "heads": 0.5}),
        ("mixtral", "per_layer", {"experts": 0.5, "heads": 0.5}),
        ("mixtral", "uniform", {"neurons": 0.5}),
    ],
)
def test_stages_end_at_the_target(
    tmp_path: Path, files: dict[str, str], model_type: str, layout: str, target: dict[str, float], finished: Watched
) -> None:
    folder, result = finished.folder, finished.result
    if (model_type, layout) != ("bert", "per_layer"):
        folder = tmp_path / "out"
        result = prune_from_config(staged(tmp_path, files, model_type, prune={"layout": layout, "target": target}))
    assert result is not None
    report, arms = result.report, pd.read_parquet(folder / "mabprune" / "arms.parquet")
    for kind in target:
        mine = arms[arms["kind"] == kind.removesuffix("s")]
        units = mine["stop"] - mine["start"]
        assert units[mine["kept"]].sum() == units.sum() / 2
    assert sorted(arms["order"]) == list(range(len(arms)))
    assert arms["order"][arms["kept"]].min() == (~arms["kept"]).sum()
    stage = arms["removed_round"]
    assert set(stage[~arms["kept"]]) == {1, 2} and (stage[arms["kept"]] == 0).all()
    assert arms["order"][stage == 1].max() < arms["order"][stage == 2].min()

    reloaded = load_pruned(folder)
    assert reloaded.num_parameters() == report.after.parameters == result.model.num_parameters()
    widths = [reloaded.get_parameter(name).shape for name in dict(reloaded.named_parameters())]
    assert widths == [parameter.shape for parameter in result.model.parameters()]
    assert report.reload["max_logit_difference"] < 1e-5

    trained = report.recovery
    assert trained is not None and trained["steps"] == 2 * round(trained["examples"] / 8)  # an epoch a stage
    assert trained["epochs"] == trained["steps"] * 8 / trained["examples"]
    assert [each["number"] for each in report.search.rounds] == [1, 2]
    assert report.search.rounds[-1]["removed"] == (~arms["kept"]).sum()
    assert report.search.pulls == arms["pulls"].sum() == report.search.rounds[-1]["pulls"]
    assert "stage 2: target reached" in report.search.stopped_because


def test_each_stage_starts_from_the_trained_model_and_learns_from_the_dense_one(finished: Watched) -> None:
    dense = load_pruned(finished.folder.parent / "model").state_dict()
    first, second = finished.searched
    assert all(torch.equal(dense[name], weight) for name, weight in first.items())
    assert all(torch.equal(finished.left[0][name], weight) for name, weight in second.items())
    assert finished.taught[0] is finished.taught[1]
    assert all(torch.equal(dense[name], weight) for name, weight in finished.taught[1].state_dict().items())


class Stop(Exception):
    """An interruption."""


def test_an_interrupted_stage_is_taken_up_where_it_was(
    tmp_path: Path, finished: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, settings = iterative.search, elsewhere(finished.settings, tmp_path / "again")
    for number, where in enumerate((1, 2)):
        ended = []

        def step(*given, where=where, ended=ended):
            ended.append(search(*given))
            if len(ended) == where:
                raise Stop  # what follows the search is lost
            return ended[-1]

        with monkeypatch.context() as patch:
            patch.setattr(iterative, "search", step)
            with pytest.raises(Stop):
                prune_from_config(settings, resume=number > 0)
    pulled = []
    pull = ReplayPulls.pull
    monkeypatch.setattr(ReplayPulls, "pull", lambda *given: pulled.append(1) or pull(*given))
    result, expected = prune_from_config(settings, resume=True), finished.result
    assert expected is not None
    assert not pulled, "both searches had ended"
    names = ["kept", "order", "pulls", "mean", "removed_round"]
    assert result.arms_table()[names].equals(expected.arms_table()[names])
    folders = (finished.folder, tmp_path / "again")
    weights = [safetensors.torch.load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    reports = [Report.from_json(folder / "mabprune" / "report.json") for folder in folders]
    assert reports[0].after.metrics == reports[1].after.metrics
    assert reports[0].search.forward_tokens == reports[1].search.forward_tokens


def elsewhere(settings: PruneConfig, folder: Path) -> PruneConfig:
    """Gives the settings of the same run with another output."""
    return settings.model_copy(update={"output": settings.output.model_copy(update={"dir": str(folder)})})


def test_what_stages_cannot_do_is_refused(tmp_path: Path, files: dict[str, str], finished: Watched) -> None:
    with pytest.raises(ValueError, match=r"recovery\.stages 2 trains one model on the way to one size, got 2 sizes"):
        staged(tmp_path, files, prune={"target": {"neurons": [0.25, 0.5]}})
    assert finished.result is not None
    with pytest.raises(ValueError, match="trained its model for one size"):
        finished.result.cut({"neurons": 0.25})
    with pytest.raises(ValueError, match=r"set recovery\.stages to 1"):
        cut_run(finished.folder, elsewhere(finished.settings, tmp_path / "cut"))
    assert not (tmp_path / "cut").exists()


def test_stages_share_the_training() -> None:
    shared = share(RecoveryConfig(stages=4, epochs=2, max_steps=10))
    assert (shared.epochs, shared.max_steps) == (0.5, 2)


def test_neurons_of_experts_that_went_are_no_arms_of_the_next_stage(tmp_path: Path, files: dict[str, str]) -> None:
    both = {"target": {"neurons": 0.5, "experts": 0.5}, "layout": "per_layer", "block_size": 8}
    result = prune_from_config(staged(tmp_path, files, "mixtral", prune=both))
    kept = result.report.kept
    assert [counts for counts in kept["expert"].values()] == [(2, 4), (2, 4)]
    widths = {site.rpartition(".")[0]: set() for site in kept["neuron"]}
    for site, (units, _) in kept["neuron"].items():
        widths[site.rpartition(".")[0]].add(units)
    assert all(len(sizes - {0}) == 1 for sizes in widths.values()), "experts of a layer keep one width, or have gone"
    assert result.report.after.parameters == sum(p.numel() for p in load_pruned(tmp_path / "out").parameters())
