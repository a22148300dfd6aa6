"""What the gradient estimates are worth: against exact pulls, per layer, at the dense model and in a context.

Correlation and residual variance are over all pulls (arm, batch) of a layer: of batch means, and after each arm's own
mean is taken off ("within arms"), which is what counts for a control variate.
"""

import time

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.gradients import estimate
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.evaluation.comparison import Session
from hf_mabprune.pipeline import load_session, make_accelerator
from hf_mabprune.selection.layouts import make_plans

Floats = NDArray[np.float64]


def measure(settings: PruneConfig, arms_each: int = 8, batches: int = 6, removed: float = 0.5) -> pd.DataFrame:
    """One row a reward, context, kind of arm and layer.

    Args:
        arms_each: Arms drawn from each layer and kind.
        batches: Calibration batches.
        removed: Fraction of the target that is removed at random, for the context.
    """
    session, _ = load_session(settings, make_accelerator())
    model = session.model
    plan = make_plans(model, session.arms, session.totals, settings.prune.sizes()[-1]).search
    scores = np.random.default_rng(settings.seed).random(len(session.arms)) * plan.cost()
    context, _ = plan.choose(scores, np.ones(len(session.arms), dtype=bool), removed)
    rows = []
    for reward in ("kl", "loss"):
        for name, kept in (("dense", np.ones_like(context)), ("in context", context)):
            rows += _compare(session, reward, name, kept, arms_each, batches, settings.seed)
    return pd.DataFrame(rows)


def _compare(
    session: Session, reward: str, name: str, kept: NDArray[np.bool_], arms_each: int, batches: int, seed: int
) -> list[dict[str, object]]:
    arms, calibration = session.arms, session.batches["calibration"][:batches]
    rng = np.random.default_rng(seed)
    there = [rows[kept[rows]] for _, _, rows in arms.groups()]
    picked = np.concatenate([rng.choice(rows, min(arms_each, len(rows)), replace=False) for rows in there])
    pulls = ReplayPulls(session.model, arms, session.task, calibration, reward, session.accelerator)
    pulls.set_context(kept)
    numbers = np.arange(len(calibration))
    start = time.perf_counter()
    exact = pulls.pull(np.repeat(picked, len(numbers)), np.tile(numbers, len(picked)))[:, 0].reshape(len(picked), -1)
    sweep = (time.perf_counter() - start) / len(picked) * kept.sum()
    start = time.perf_counter()
    found = np.stack([_estimate(session, batch, reward, kept) for batch in calibration], axis=1)[picked]
    price = (time.perf_counter() - start) / sweep
    rows: list[dict[str, object]] = []
    for kind in np.unique(arms.kind):
        for layer in np.unique(arms.layer):
            mine = np.flatnonzero((arms.kind[picked] == kind) & (arms.layer[picked] == layer))
            if len(mine) > 1:
                pooled = _agreement(exact[mine], found[mine])
                within = _agreement(*(values[mine] - values[mine].mean(1, keepdims=True) for values in (exact, found)))
                rows.append(
                    {"reward": reward, "at": name, "arm": kind, "layer": int(layer), "correlation": pooled[0],
                     "residual": pooled[1], "within arms": within[0], "residual within": within[1],
                     "price of a sweep": price}
                )  # fmt: skip
    return rows


def _estimate(session: Session, batch: dict[str, torch.Tensor], reward: str, kept: NDArray[np.bool_]) -> Floats:
    """[K], batch means."""
    inputs = {name: tensor.to(session.model.device) for name, tensor in batch.items()}
    with torch.no_grad():
        original = None if kept.all() else session.task.readout(session.model, inputs)
    return estimate(session.model, session.arms, session.task, inputs, reward, kept, original)[0].mean(1).cpu().numpy()


def _agreement(exact: Floats, found: Floats) -> tuple[float, float]:
    """Correlation, and Var(exact - found) / Var(exact)."""
    return float(np.corrcoef(exact.ravel(), found.ravel())[0, 1]), float((exact - found).var() / exact.var())
