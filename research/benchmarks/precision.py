"""How exact pulls are: the engine in the search's precision against the same engine in float64, arm by arm.

For each layer: the largest error of an arm's mean reward beside the spread of the arms' means, and their rank
correlation. What is asked of a precision: errors of at most 1% of the spread, correlations of at least 0.999.
"""

import copy

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.arms import ArmTable
from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.progress import over, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.run import half_of
from hf_mabprune.session import Session, open_session

ALLOWED_ERROR, ALLOWED_CORRELATION = 0.01, 0.999


@stage("benchmark")
def measure(
    settings: PruneConfig, arms_each: int = 16, batches: int = 2, block_sizes: tuple[int, ...] = (1, 32)
) -> pd.DataFrame:
    """Measures the error of pulls: one row a reward, kind of arm and layer.

    Args:
        settings: Run settings; their reward and block size are varied, their `products` are what is tested.
        arms_each: Arms drawn from each layer, for each kind.
        batches: Calibration batches that means are taken over.
        block_sizes: Sizes of neuron arms.
    """
    session = open_session(settings, make_accelerator())
    model = session.dense
    exact = copy.deepcopy(model).double()
    rows = []
    for reward in over(("kl", "loss"), "rewards", "rewards"):
        for kind, size in [*(("neuron", size) for size in block_sizes), ("head", 1)]:
            arms = arm_table(model, [kind], size, session.example)
            picked = draw(arms, arms_each, settings.seed)
            means = [
                _means(session, version, arms, picked, reward, batches, products)
                for version, products in ((model, half_of(settings)), (exact, None))
            ]
            rows += [
                {"reward": reward, "arm": kind if size == 1 else f"block of {size}", "layer": layer, **figures}
                for layer, figures in by_layer(arms.layer[picked], *means).items()
            ]
    return pd.DataFrame(rows)


def draw(arms: ArmTable, count: int, seed: int) -> NDArray[np.int64]:
    """Draws at most `count` arms of each layer."""
    rng = np.random.default_rng(seed)
    layers = [np.flatnonzero(arms.layer == layer) for layer in np.unique(arms.layer)]
    return np.concatenate([np.sort(rng.choice(rows, min(count, len(rows)), replace=False)) for rows in layers])


def by_layer(
    layers: NDArray[np.int64], means: NDArray[np.float64], exact: NDArray[np.float64]
) -> dict[int, dict[str, float]]:
    """Maps layers to error over spread, rank correlation, and whether both are what is asked for.

    Args:
        layers: Layer of each arm, [n].
        means: Mean reward of each arm, [n], in the precision that is tested.
        exact: The same in float64.
    """
    results = {}
    for layer in np.unique(layers):
        one, other = means[layers == layer], exact[layers == layer]
        error, correlation = float(np.abs(one - other).max() / other.std()), float(spearmanr(one, other).statistic)
        holds = error <= ALLOWED_ERROR and correlation >= ALLOWED_CORRELATION
        results[int(layer)] = {"spread": float(other.std()), "error": error, "spearman": correlation, "holds": holds}
    return results


def _means(
    session: Session,
    model: PreTrainedModel,
    arms: ArmTable,
    picked: NDArray[np.int64],
    reward: str,
    batches: int,
    products: torch.dtype | None,
) -> NDArray[np.float64]:
    """[n], the mean reward of each picked arm over some batches."""
    calibration = session.batches["calibration"][:batches]
    pulls = ReplayPulls(model, arms, session.task, calibration, reward, session.accelerator, products=products)
    values = pulls.pull(np.repeat(picked, len(calibration)), np.tile(np.arange(len(calibration)), len(picked)))
    return values[:, 0].reshape(len(picked), -1).mean(1)
