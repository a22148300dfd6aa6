"""What a pull costs: the paper's two forwards, replayed pulls, and how much of a forward comes before the mask.

Arms are drawn uniformly over layers, both engines pull the same arms on the same batches in turns, and the figure of
an engine is total pulls over total seconds.
"""

import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.comparison import Judge
from hf_mabprune.config import PruneConfig
from hf_mabprune.pipeline import load_model, make_accelerator, prepare
from hf_mabprune.pulls.base import Pulls
from hf_mabprune.pulls.reference import ReferencePulls
from hf_mabprune.pulls.replay import ReplayPulls
from hf_mabprune.tasks.splits import load_splits


@dataclass(frozen=True)
class PullCost:
    """Both engines on arms of one kind; medians over repeats."""

    kind: str
    reference_seconds: float
    replay_seconds: float
    speedup: float
    reference_tokens: float  # forward tokens a pull
    replay_tokens: float
    before_mask: float  # share of a plain forward's time that passes before the masked module runs
    largest_difference: float  # of a mean reward, between the engines


def measure(settings: PruneConfig, arms_each: int = 12, repeats: int = 3) -> str:
    """The table of costs, one line a kind of arm."""
    accelerator = make_accelerator()
    model, tokenizer = load_model(settings.model, settings.task)
    judge = prepare(settings, model.to(accelerator.device), tokenizer, load_splits(settings.task), accelerator)
    costs = [_measure_kind(judge, kind, settings, arms_each, repeats) for kind in np.unique(judge.arms.kind)]
    return pd.DataFrame([asdict(cost) for cost in costs]).to_markdown(index=False, floatfmt=".3g")


def _measure_kind(judge: Judge, kind: str, settings: PruneConfig, arms_each: int, repeats: int) -> PullCost:
    rng = np.random.default_rng(settings.seed)
    layers = np.arange(arms_each) % (judge.arms.layer.max() + 1)
    pool = {layer: np.flatnonzero((judge.arms.kind == kind) & (judge.arms.layer == layer)) for layer in set(layers)}
    arms = np.array([rng.choice(pool[layer]) for layer in layers])
    seconds: dict[type[Pulls], list[float]] = {ReferencePulls: [], ReplayPulls: []}
    values, tokens = {}, {}
    for repeat in range(repeats):
        batch = repeat % len(judge.batches["calibration"])
        for engine, taken in seconds.items():
            pulls = engine(
                judge.model, judge.arms, judge.task, judge.batches["calibration"], settings.search.reward,
                judge.accelerator,
            )  # fmt: skip
            pulls.observe(batch, pulls.kept)  # the unpruned outputs are cached by both
            pulls.cost = type(pulls.cost)()
            values[engine] = pulls.pull(arms, np.full(len(arms), batch))
            taken.append(pulls.cost.seconds / len(arms))
            tokens[engine] = pulls.cost.forward_tokens / len(arms)
    slow, fast = (statistics.median(seconds[engine]) for engine in (ReferencePulls, ReplayPulls))
    difference = np.abs(values[ReferencePulls][:, 0] - values[ReplayPulls][:, 0]).max()
    before = _share_before(judge, kind)
    return PullCost(
        kind, slow, fast, slow / fast, tokens[ReferencePulls], tokens[ReplayPulls], before, float(difference)
    )


@torch.inference_mode()
def _share_before(judge: Judge, kind: str, repeats: int = 5) -> float:
    """Mean over layers of the share of a forward's time that passes before the masked projection runs."""
    batch = {name: tensor.to(judge.model.device) for name, tensor in judge.batches["calibration"][0].items()}
    shares = []
    for _ in range(repeats):
        reached: list[float] = []
        sites = [site for site in architecture_of(judge.model).sites(judge.model) if site.kind == kind]
        hooks = [
            judge.model.base_model.get_submodule(site.output).register_forward_pre_hook(
                lambda *_, reached=reached: reached.append(time.perf_counter())
            )
            for site in sites
        ]
        start = time.perf_counter()
        judge.task.readout(judge.model, batch)
        total = time.perf_counter() - start
        for hook in hooks:
            hook.remove()
        shares.append(float(np.mean([(moment - start) / total for moment in reached])))
    return statistics.median(shares)
