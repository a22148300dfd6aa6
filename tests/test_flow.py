"""The flow as a whole: what its stages may ask for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune import pipeline
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.criteria import CRITERIA, Criterion
from hf_mabprune.evaluation import comparison
from hf_mabprune.pipeline import prune_from_config
from tests.problems import QUICK, settings_for

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]


ALONE = {"name": "least_squares", "bottom_up": False}


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"rule": {"name": "refit", "moves": 2}, "rounds": None}, "compensation": ALONE},
        {"search": {"rule": "interactions", "rounds": 2}, "compensation": ALONE},
        {"search": {"criterion": "kfac_obs", "rounds": None}, "compensation": ALONE},
        {"compensation": {"name": "mask_tuning"}, "search": {"rounds": 1}},
    ],
)
def test_no_stage_after_surgery_runs_the_dense_model(
    changes: dict[str, Any],
    model_type: str,
    tmp_path: Path,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The latency alone does, for a ratio of two times wants both models in turns; and refits that go bottom-up."""
    dense: list[PreTrainedModel] = []
    allowed: list[bool] = []
    cut, timed = pipeline.cut, comparison.measure_latency

    def watched_cut(model: PreTrainedModel, *rest: Any) -> PreTrainedModel:
        small = cut(model, *rest)
        dense.append(model)
        return small

    def latency(*given: Any) -> list[float]:
        allowed.append(True)
        times = timed(*given)
        allowed.pop()
        return times

    def refuse(module: nn.Module, _: Any) -> None:
        assert allowed or not dense or module is not dense[0], "the dense model was run after a cut"

    monkeypatch.setattr(pipeline, "cut", watched_cut)
    monkeypatch.setattr(comparison, "measure_latency", latency)
    hook = nn.modules.module.register_module_forward_pre_hook(refuse)
    request.addfinalizer(hook.remove)
    result = prune_from_config(settings_for(tmp_path, files, model_type, **changes))
    assert len(dense) == 1 and result.report.after.kl is not None
    assert result.report.reload["max_logit_difference"] < 1e-4


@pytest.mark.parametrize("name", [name for name in CRITERIA.names() if CRITERIA.get(name).ranks(["neuron", "head"])])
def test_a_criterion_chooses_alone(name: str, tmp_path: Path, files: dict[str, str]) -> None:
    changes = {"search": {"criterion": name, "rounds": None}, "compensation": QUICK, "output": {"random_seeds": 1}}
    result = prune_from_config(settings_for(tmp_path, files, "bert", **changes))
    arms, report = RunFolder(tmp_path / "out").read()
    assert (arms["pulls"] == 0).all() and report.search.pulls == 0 and report.search.criterion == name
    assert report.search.policy == {} and report.search.stopped_because == f"criterion {name}, no pulls"
    assert report.search.forward_tokens > 0, "of the criterion, or of the refit"
    assert (arms["removed_round"] == 1).equals(~arms["kept"])
    assert arms.loc[~arms["kept"], "order"].max() < arms.loc[arms["kept"], "order"].min()
    removed = arms[~arms["kept"]].sort_values("order")
    if CRITERIA.get(name).choose is Criterion.choose:  # others may let arms change places afterwards
        for _, rows in removed.groupby("kind"):
            assert (np.diff(rows["mean"]) <= 1e-12).all(), "the safest goes first"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"picked by the criterion `{name}`" in card and "bandit" not in card.split("---")[2]
    smaller = result.cut({"neurons": 0.25, "heads": 0.25})
    assert set(np.flatnonzero(result.selection.kept)) < set(np.flatnonzero(smaller.selection.kept)), "sizes are nested"
    assert torch.isfinite(torch.tensor(smaller.report.after.loss))
