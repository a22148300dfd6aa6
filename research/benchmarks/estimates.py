"""What the gradient estimates are worth: against exact pulls, per layer, at the dense model and in a context.

Correlation and residual variance are over all pulls (arm, batch) of a layer: of means over a batch, and after each
arm's own mean is taken off ("within arms"), which is what counts for a control variate.
"""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hf_mabprune.arms import Bools, Ints
from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.gradients import estimate
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.progress import over, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.selection.layouts import make_plans
from hf_mabprune.session import Session, open_session
from hf_mabprune.tasks.batch import Batch

Floats = NDArray[np.float64]


@stage("benchmark")
def measure(settings: PruneConfig, arms_each: int = 8, batches: int = 6, removed: float = 0.5) -> pd.DataFrame:
    """Compares estimates with pulls: one row a reward, context, kind of arm and layer.

    Args:
        settings: Run settings.
        arms_each: Arms drawn from each layer and kind.
        batches: Calibration batches.
        removed: Fraction of the target that is removed at random, for the context.
    """
    session = open_session(settings, make_accelerator())
    plan = make_plans(session.dense, session.arms, session.totals, settings.prune.sizes()[-1]).search
    scores = np.random.default_rng(settings.seed).random(len(session.arms)) * plan.cost()
    context, _ = plan.choose(scores, np.ones(len(session.arms), dtype=bool), removed)
    rows = []
    for reward in over(("kl", "loss"), "rewards", "rewards"):
        for name, kept in (("dense", np.ones_like(context)), ("in context", context)):
            rows += _compare(session, reward, name, kept, arms_each, batches, settings.seed)
    return pd.DataFrame(rows)


def _compare(
    session: Session, reward: str, name: str, kept: Bools, arms_each: int, batches: int, seed: int
) -> list[dict[str, object]]:
    """Rows of one reward in one context."""
    arms, calibration = session.arms, session.batches["calibration"][:batches]
    rng = np.random.default_rng(seed)
    there = [rows[kept[rows]] for _, rows in arms.groups()]
    picked = np.concatenate([rng.choice(rows, min(arms_each, len(rows)), replace=False) for rows in there])
    exact, a_pull = _exact(session, reward, kept, picked, calibration)
    start = time.perf_counter()
    estimated = np.stack([_estimate(session, batch, reward, kept) for batch in calibration], axis=1)[picked]
    price = (time.perf_counter() - start) / (a_pull * kept.sum())
    rows: list[dict[str, object]] = []
    for kind in np.unique(arms.kind):
        for layer in np.unique(arms.layer):
            site = np.flatnonzero((arms.kind[picked] == kind) & (arms.layer[picked] == layer))
            if len(site) > 1:
                row = {"reward": reward, "at": name, "arm": kind, "layer": int(layer)}
                rows.append(row | _figures(exact[site], estimated[site]) | {"price of a sweep": price})
    return rows


def _exact(
    session: Session, reward: str, kept: Bools, picked: Ints, calibration: Sequence[Batch]
) -> tuple[Floats, float]:
    """Rewards of the picked arms by pulls, [n, batches], and seconds an arm."""
    pulls = ReplayPulls(session.dense, session.arms, session.task, calibration, reward, session.accelerator)
    pulls.set_context(kept)
    numbers = np.arange(len(calibration))
    start = time.perf_counter()
    values = pulls.pull(np.repeat(picked, len(numbers)), np.tile(numbers, len(picked)))[:, 0]
    return values.reshape(len(picked), -1), (time.perf_counter() - start) / len(picked)


def _estimate(session: Session, batch: Batch, reward: str, kept: Bools) -> Floats:
    """Estimated rewards of all arms, [K], means over a batch."""
    inputs = batch.to(session.dense.device)
    with torch.no_grad():
        dense = None if kept.all() else session.task.readout(session.dense, inputs)
    return estimate(session.dense, session.arms, session.task, inputs, reward, kept, dense)[0].mean(1).cpu().numpy()


def _figures(exact: Floats, estimated: Floats) -> dict[str, object]:
    """Agreement of one site's rewards, [n, batches]: pooled, and with each arm's own mean taken off."""
    pooled = _agreement(exact, estimated)
    within = _agreement(*(values - values.mean(1, keepdims=True) for values in (exact, estimated)))
    return {
        "correlation": pooled[0],
        "residual": pooled[1],
        "within arms": within[0],
        "residual within": within[1],
    }


def _agreement(exact: Floats, estimated: Floats) -> tuple[float, float]:
    """Correlation, and Var(exact - estimated) / Var(exact)."""
    return float(np.corrcoef(exact.ravel(), estimated.ravel())[0, 1]), float((exact - estimated).var() / exact.var())
