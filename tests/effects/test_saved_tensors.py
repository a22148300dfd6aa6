"""What a pass saved for its gradients goes when the pass is done: memory must not grow with the number of batches."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hf_mabprune.config import TargetConfig
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.criteria.statistics import CalibrationStatistics
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.refit_costs import RefitCosts
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, problem


@dataclass(eq=False)
class Saved:
    """A tensor that a backward pass may need."""

    tensor: torch.Tensor


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fails if anything that was saved for gradients inside is alive at the end, or nothing was saved at all."""
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()
    count = 0

    def pack(tensor: torch.Tensor) -> Saved:
        nonlocal count
        count += 1
        alive.add(saved := Saved(tensor.detach()))  # a pass that holds on to itself would never go
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        yield
    gc.collect()
    assert count and not alive


@pytest.mark.parametrize("pulls_class", [ReferencePulls, ReplayPulls])
@pytest.mark.parametrize("model_type", ["bert", "llama", "mixtral", "t5"])
def test_effects(model_type: str, pulls_class: type) -> None:
    model, task, batches, arms = problem(model_type)
    model.requires_grad_(True)
    pulls = pulls_class(model, arms, task, batches)
    with nothing_left_behind():
        pulls.effects(samples=2, seed=0)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_refit_costs(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    model.requires_grad_(True)
    with nothing_left_behind():
        refit_costs = RefitCosts.of(model, arms, task, batches)
    assert np.isfinite(refit_costs.along).all()


@pytest.mark.parametrize("name", ["taylor", "fisher", "fisher_rearranged", "kfac_obs"])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_criteria(model_type: str, name: str) -> None:
    model, task, batches, arms = problem(model_type)
    model.requires_grad_(True)
    plan = make_plan(arms, TargetConfig(neurons=0.5), {}, "per_layer", limits(arms))
    statistics = CalibrationStatistics(model, arms, task, batches, 0)
    with nothing_left_behind():
        CRITERIA.get(name)().choose(statistics, plan)
