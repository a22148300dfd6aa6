"""Pruning in stages, with training between them: it ends where its parts say, and takes up where it was left."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch

from hf_mabprune import iterative, load_pruned
from hf_mabprune.config import PruneConfig, RecoveryConfig
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.evaluation.report import Report
from hf_mabprune.iterative import Stage, share
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.recut import cut_run
from tests.test_pipeline import files, settings_for

__all__ = ["files"]

TRAINING = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "stages": 2}
SEARCH = {"rounds": None, "pulls_per_arm": 1, "rule": {"moves": 4}, "policy": {"name": "race"}}


def staged(tmp_path: Path, files: dict[str, str], model_type: str = "bert", **changes: Any) -> PruneConfig:
    return settings_for(tmp_path, files, model_type, **{"recovery": TRAINING, "search": SEARCH, **changes})


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_stages_end_at_the_target(tmp_path: Path, files: dict[str, str], model_type: str, layout: str) -> None:
    target = {"neurons": 0.5, "heads": 0.5}
    settings = staged(tmp_path, files, model_type, prune={"layout": layout, "target": target})
    if (model_type, layout) == ("bert", "uniform"):  # whose config cannot say fewer heads
        settings = staged(tmp_path, files, model_type, prune={"layout": layout, "target": {"neurons": 0.5}})
        target = {"neurons": 0.5}
    result = prune_from_config(settings)
    report, arms = result.report, pd.read_parquet(tmp_path / "out" / "mabprune" / "arms.parquet")
    for kind in target:
        mine = arms[arms["kind"] == kind.removesuffix("s")]
        units = mine["stop"] - mine["start"]
        assert units[mine["kept"]].sum() == units.sum() / 2
    assert sorted(arms["order"]) == list(range(len(arms)))
    assert arms["order"][arms["kept"]].min() == (~arms["kept"]).sum()
    stage = arms["removed_round"]
    assert set(stage[~arms["kept"]]) == {1, 2} and (stage[arms["kept"]] == 0).all()
    assert arms["order"][stage == 1].max() < arms["order"][stage == 2].min()

    reloaded = load_pruned(tmp_path / "out")
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


def test_each_stage_starts_from_the_trained_model_and_learns_from_the_dense_one(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, taught, left = [], [], []
    search, cut = iterative.search, Stage.cut

    def watched_search(session, plans, run):
        searched.append({name: weight.clone() for name, weight in session.dense.state_dict().items()})
        return search(session, plans, run)

    def watched_cut(self, *arguments):
        taught.append(self.dense.dense)
        after = cut(self, *arguments)
        left.append({name: weight.clone() for name, weight in after.model.state_dict().items()})
        return after

    monkeypatch.setattr(iterative, "search", watched_search)
    monkeypatch.setattr(Stage, "cut", watched_cut)
    prune_from_config(staged(tmp_path, files))
    whole = load_pruned(tmp_path / "model").state_dict()
    assert all(torch.equal(whole[name], weight) for name, weight in searched[0].items())
    assert all(torch.equal(left[0][name], weight) for name, weight in searched[1].items())
    assert taught[0] is taught[1]
    assert all(torch.equal(whole[name], weight) for name, weight in taught[1].state_dict().items())


def test_an_interrupted_stage_is_taken_up_where_it_was(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = iterative.search
    settings = staged(tmp_path, files, search={**SEARCH, "pulls_per_arm": 4, "arms_per_step": 4})
    expected = prune_from_config(settings)
    names = ["kept", "order", "pulls", "mean", "removed_round"]

    class Stop(Exception):
        """An interruption."""

    again = settings.model_copy(update={"output": settings.output.model_copy(update={"dir": str(tmp_path / "again")})})
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
                prune_from_config(again, resume=number > 0)
    pulled = []
    pull = ReplayPulls.pull
    monkeypatch.setattr(ReplayPulls, "pull", lambda *given: pulled.append(1) or pull(*given))
    result = prune_from_config(again, resume=True)
    assert not pulled, "both searches had ended"
    assert result.arms_table()[names].equals(expected.arms_table()[names])
    weights = [safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("out", "again")]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    reports = [Report.from_json(tmp_path / name / "mabprune" / "report.json") for name in ("out", "again")]
    assert reports[0].after.metrics == reports[1].after.metrics
    assert reports[0].search.forward_tokens == reports[1].search.forward_tokens


def test_what_stages_cannot_do_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"recovery\.stages 2 trains one model on the way to one size, got 2 sizes"):
        staged(tmp_path, files, prune={"target": {"neurons": [0.25, 0.5]}})
    settings = staged(tmp_path, files)
    result = prune_from_config(settings)
    with pytest.raises(ValueError, match="trained its model for one size"):
        result.cut({"neurons": 0.25})
    other = settings.model_copy(update={"output": settings.output.model_copy(update={"dir": str(tmp_path / "cut")})})
    with pytest.raises(ValueError, match=r"set recovery\.stages to 1"):
        cut_run(tmp_path / "out", other)
    assert not (tmp_path / "cut").exists()


def test_stages_share_the_training() -> None:
    shared = share(RecoveryConfig(stages=4, epochs=2, max_steps=10))
    assert (shared.epochs, shared.max_steps) == (0.5, 2)
