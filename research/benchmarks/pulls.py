"""What a pull costs: the paper's two forwards against replayed pulls, beside what counting operations allows.

Arms are drawn uniformly over layers, all engines pull the same arms on the same batches in turns, and the figure of an
engine is total pulls over total seconds.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.projections import cuts
from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.pulls.base import Pulls
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.progress import over, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.session import Session, open_session
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.sampling import split_by_length


@dataclass(frozen=True)
class PullCost:
    """Compares engines on arms of one kind; medians over repeats, each on another batch."""

    arm: str
    products: str  # precision of replay's matrix products; the two forwards run in the model's own
    padded_s: float  # two forwards, batches padded to their longest
    equal_s: float  # two forwards, on the tokens that replay runs
    replay_s: float
    padded_ratio: float
    equal_ratio: float
    ceiling: float  # of equal_ratio, by counting multiply-accumulates
    of_ceiling: float
    floor_s: float  # the multiply-accumulates that a pull cannot avoid, at the rate of this machine's matrix products
    before_mask: float  # share of a plain forward's time that passes before the masked module runs
    difference: float  # largest, of a mean reward, between padded and replay


@stage("benchmark")
def measure(settings: PruneConfig, arms_each: int = 48, repeats: int = 3) -> pd.DataFrame:
    """Measures what pulls cost, one row a kind of arm; one more in half precision on a GPU, or where settings ask.

    Args:
        settings: Run settings.
        arms_each: Arms of each kind that replay pulls; the two forwards of the paper pull a quarter of them.
        repeats: Batches, one after another.
    """
    session = open_session(settings, make_accelerator())
    half = session.dense.device.type == "cuda" or settings.search.products == "float16"
    return pd.DataFrame(
        [
            asdict(_measure_kind(session, kind, settings, products, arms_each, repeats))
            for kind in np.unique(session.arms.kind)
            for products in ([None, torch.float16] if half else [None])
        ]
    )


def plot(table: pd.DataFrame, path: str | Path) -> None:
    """Draws replay over the two forwards of the paper, beside what counting allows; one group of bars a row.

    Args:
        table: Rows of `measure`.
        path: Picture file; its folder is made.
    """
    figure = Figure(figsize=(7, 1.2 + 0.9 * len(table)), layout="constrained")
    panel = figure.subplots()
    bars = {
        "padded_ratio": ("against padded batches", "#0072B2"),
        "equal_ratio": ("on equal tokens", "#56B4E9"),
        "ceiling": ("ceiling on equal tokens, by counting", "#BBBBBB"),
    }
    for place, (column, (label, colour)) in enumerate(bars.items()):
        rows = np.arange(len(table)) + 0.26 * (place - 1)
        drawn = panel.barh(rows, table[column], height=0.24, color=colour, label=label)
        panel.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
    panel.set_yticks(np.arange(len(table)), table["arm"] + "\n" + table["products"])
    panel.invert_yaxis()
    panel.set_xlabel("pulls per second, as a multiple of two full forward passes a pull")
    panel.legend(fontsize=8, loc="lower right")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _measure_kind(
    session: Session, kind: str, settings: PruneConfig, products: torch.dtype | None, arms_each: int, repeats: int
) -> PullCost:
    rng = np.random.default_rng(settings.seed)
    layers = np.arange(arms_each) % (session.arms.layer.max() + 1)
    pool = {
        layer: np.flatnonzero((session.arms.kind == kind) & (session.arms.layer == layer)) for layer in set(layers)
    }
    arms = np.array([rng.choice(pool[layer]) for layer in layers])
    few = arms[: max(arms_each // 4, len(pool))]
    seconds: dict[str, list[float]] = {"padded": [], "equal": [], "replay": []}
    tokens, differences = [], []
    for repeat in over(range(repeats), "engines", "repeats"):
        batch = session.batches["calibration"][repeat % len(session.batches["calibration"])]
        parts = split_by_length(batch)
        tokens.append(sum(part.tokens for part in parts))
        replayed = _seconds(session, partial(ReplayPulls, products=products), [batch], arms, settings.search.reward)
        padded = _seconds(session, ReferencePulls, [batch], few, settings.search.reward)
        equal = _seconds(session, ReferencePulls, parts, few, settings.search.reward)
        for name, (taken, _) in (("padded", padded), ("equal", equal), ("replay", replayed)):
            seconds[name].append(taken)
        differences.append(np.abs(padded[1][: len(few)] - replayed[1][: len(few)]).max())
    padded_s, equal_s, replay_s = (statistics.median(taken) for taken in seconds.values())
    whole, suffix = _work(session, kind)
    ceiling = 2 * whole / suffix
    return PullCost(
        arm=f"{kind}, {int(session.arms.units[arms].max())} units",
        products=str(products or session.dense.dtype).removeprefix("torch."),
        padded_s=padded_s,
        equal_s=equal_s,
        replay_s=replay_s,
        padded_ratio=padded_s / replay_s,
        equal_ratio=equal_s / replay_s,
        ceiling=ceiling,
        of_ceiling=equal_s / replay_s / ceiling,
        floor_s=suffix * statistics.median(tokens) / _rate(session),
        before_mask=_share_before(session, kind),
        difference=float(max(differences)),
    )


def _seconds(
    session: Session,
    engine: Callable[..., Pulls],
    batches: list[Batch],
    arms: np.ndarray,
    reward: str,
) -> tuple[float, np.ndarray]:
    """Seconds a pull on all of the batches, and the rewards on the first."""
    pulls = engine(session.dense, session.arms, session.task, batches, reward, session.accelerator)
    numbers = np.arange(len(batches))
    pulls.pull(np.repeat(arms[:1], len(batches)), numbers)  # the dense outputs and the context are cached
    start = time.perf_counter()
    values = pulls.pull(np.repeat(arms, len(batches)), np.tile(numbers, len(arms)))
    if session.dense.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(arms), values[:: len(batches), 0]


def _work(session: Session, kind: str) -> tuple[float, float]:
    """Multiply-accumulates a token: of a whole forward pass, and of what a pull cannot avoid, mean over layers."""
    architecture, model = architecture_of(session.dense), session.dense
    sites = {(site.kind, site.layer): site for site in architecture.sites(model)}
    layers = range(1 + max(layer for _, layer in sites))

    def weights(kind: str, layer: int) -> int:
        site, base = sites[kind, layer], model.base_model
        paths = {cut.path for cut in cuts(base, site, np.arange(site.units)) if cut.path.endswith("weight")}
        return sum(base.get_parameter(path).numel() for path in paths)

    def products(layer: int) -> int:
        return 2 * session.example.length * sites["head", layer].units * sites["head", layer].unit_size

    attention = [weights("head", layer) + products(layer) for layer in layers]
    ffn = [weights("neuron", layer) for layer in layers]
    embeddings = model.get_output_embeddings()
    head = 0 if embeddings is None else embeddings.weight.numel()
    needed_attention, needed_ffn = list(attention), list(ffn)
    if architecture.classifies_first and session.task.reads_one_position:  # of the last layer, keys and values alone
        needed_ffn[-1] = 0
        needed_attention[-1] = attention[-1] // 2
    suffixes = []
    for layer in layers:
        later = sum(needed_attention[layer + 1 :]) + sum(needed_ffn[layer + 1 :])
        suffixes.append(later + head + (needed_ffn[layer] if kind == "head" else 0))
    return sum(attention) + sum(ffn) + head, float(np.mean(suffixes))


def _rate(session: Session, rows: int = 2048, repeats: int = 9) -> float:
    """Multiply-accumulates a second of a matrix product of the model's shapes."""
    weight = projection_of(session.dense, architecture_of(session.dense).sites(session.dense)[0]).weight
    left = torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, weight.T)
        if left.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return rows * weight.numel() / statistics.median(taken)


@torch.inference_mode()
def _share_before(session: Session, kind: str, repeats: int = 5) -> float:
    """Mean over layers of the share of a forward's time that passes before the masked projection runs."""
    batch = session.batches["calibration"][0].to(session.dense.device)
    shares = []
    for _ in range(repeats):
        reached: list[float] = []
        sites = [site for site in architecture_of(session.dense).sites(session.dense) if site.kind == kind]
        hooks = [
            session.dense.base_model.get_submodule(site.name).register_forward_pre_hook(
                lambda *_, reached=reached: reached.append(time.perf_counter())
            )
            for site in sites
        ]
        start = time.perf_counter()
        session.task.readout(session.dense, batch)
        total = time.perf_counter() - start
        for hook in hooks:
            hook.remove()
        shares.append(float(np.mean([(moment - start) / total for moment in reached])))
    return statistics.median(shares)
