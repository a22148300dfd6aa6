"""What a GPU gives is what the CPU gives: `python -m pytest -m gpu`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mabprune import load_pruned
from hf_mabprune.effects.obs import increases
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.runtime.accelerator import make_accelerator
from tests.problems import problem, pull_all, settings_for, whole

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", [1, 4])
def test_obs_costs_the_same_on_both_devices(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 320), (900, 320)))
    second = rows.T @ rows / len(rows)
    here, there = (increases(weight, second.to(device), size, 320 // size, 0.01) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, rtol=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_pulls_that_are_replayed_are_those_of_the_whole_model(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    accelerator = make_accelerator()
    assert accelerator.device.type == "cuda"
    model.to(accelerator.device)
    engines = (kind(model, arms, task, batches, "kl", accelerator) for kind in (ReferencePulls, ReplayPulls))
    reference, replayed = (pull_all(engine, whole(arms)) for engine in engines)
    np.testing.assert_allclose(replayed, reference, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_whole_run_ends_in_a_model_that_the_cpu_loads(
    tmp_path: Path, files: dict[str, str], without_figures: None, model_type: str
) -> None:
    result = prune_from_config(settings_for(tmp_path, files, model_type))
    assert result.finished.session.accelerator.device.type == "cuda"
    report = Report.from_json(tmp_path / "out" / "mabprune" / "report.json")
    assert report.reload["max_logit_difference"] < 1e-4
    assert report.after.parameters == load_pruned(tmp_path / "out").num_parameters() < report.before.parameters
