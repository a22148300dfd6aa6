"""Bandit policies side by side: same model, data, arms, target and budget; only policy, reward and seed differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_mabprune.config import PruneConfig, check
from hf_mabprune.data.splits import load_splits
from hf_mabprune.evaluation.choice import select
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.quality import Evaluation, percentiles, resample
from hf_mabprune.progress import stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.run import search
from hf_mabprune.selection.layouts import make_plans
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import load_model, make_session
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.scores import Scores
from research.benchmarks.sessions import under

RANDOM, DENSE = "random", "dense"
SCORES = tuple(Scores.__dataclass_fields__)


def compare(
    settings: PruneConfig, variants: Sequence[str], seeds: Sequence[int], out: str | Path, merge: Sequence[str] = ()
) -> str:
    """Runs every variant with every seed, one row a run; runs that a file already holds are not made again.

    Args:
        settings: Settings that all runs share.
        variants: Names `policy` or `policy:reward`; a policy alone takes the reward of the settings.
        seeds: Seeds of policies, of the draw of calibration data, and of the random control.
        out: Parquet file of the rows, scores of each test example included; it grows with each run.
        merge: Files of other launches, whose rows are taken over.

    Returns:
        The table: metric of each seed, cost, and the paired differences to `random` and to `uniform`.
    """
    accelerator = make_accelerator()
    model, processor = load_model(settings.model, settings.task)
    splits = load_splits(settings.task)
    files = [path for path in map(Path, (out, *merge)) if path.is_file()]
    rows: list[Any] = [row for path in files for row in pd.read_parquet(path).to_dict("records")]
    done = {(row["variant"], row["seed"]) for row in rows}
    model.to(accelerator.device)
    todo = [DENSE, RANDOM, *variants]
    with stage("benchmark", len(seeds) * len(todo), "runs") as work:
        for seed in seeds:
            seeded = vary(settings, {}, seed)
            session = make_session(seeded, model, processor, splits, accelerator, model.dtype)  # nothing is saved
            comparison = Comparison(session)
            plan = make_plans(model, session.arms, session.totals, settings.prune).search
            for variant in todo:
                work.count(work.done, note=f"{variant}, seed {seed}")
                if (variant, seed) not in done:
                    rows.append(_run(comparison, plan, variant, seed))
                    _save(rows, out)
                work.count(work.done + 1)
    return table(pd.DataFrame(rows), session.task)


def _run(comparison: Comparison, plan: Plan, variant: str, seed: int) -> dict[str, Any]:
    """One search and its test scores, or one of the controls that need no search."""
    session = comparison.session
    everything = np.ones(len(session.arms), dtype=bool)
    if variant == DENSE:
        return _row(variant, seed, comparison.masked(everything, "test", intervals=False))
    if variant == RANDOM:
        drawn = Selection(plan, everything, 1, 1).random(seed)
        return _row(variant, seed, comparison.masked(drawn.kept, "test", intervals=False))
    policy, _, reward = variant.partition(":")
    changes = {"criterion": None, "policy": {"name": policy}, **({"reward": reward} if reward else {})}
    settings = vary(session.settings, changes, seed)
    result, cost = search(under(session, settings), [plan])
    selection = select(comparison, result, settings.prune)
    return _row(variant, seed, comparison.masked(selection.kept, "test", intervals=False)) | vars(cost)


def vary(settings: PruneConfig, search_changes: Mapping[str, object], seed: int) -> PruneConfig:
    """Gives the same settings with another seed and other search settings."""
    changed = settings.model_dump()
    changed["search"] |= dict(search_changes)
    return check(changed | {"seed": seed})


def table(rows: pd.DataFrame, task: Task) -> str:
    """Writes one line a variant: its runs, what they cost, and its paired differences with their 95% intervals.

    Differences are means over seeds; the bootstrap resamples test examples, the same for both sides. `*` marks an
    interval that excludes zero.
    """
    metric = task.main_metric
    runs_of = {str(variant): runs for variant, runs in rows.groupby("variant", sort=False)}
    lines = []
    for variant, runs in runs_of.items():
        line = {
            "variant": variant,
            metric: " ".join(f"{value:.4f}" for value in runs[metric]),
            "loss": f"{runs['loss'].mean():.4f}",
            "KL": f"{runs['mean_kl'].mean():.4f}",
        }
        for control in (RANDOM, "uniform"):
            if control in runs_of and variant not in (control, RANDOM, DENSE):
                line[f"minus {control} (95%)"] = _difference(task, runs, runs_of[control])
        if "pulls" in runs and runs["pulls"].notna().all():
            line |= {
                "pulls": f"{runs['pulls'].mean():,.0f}",
                "forward tokens": f"{runs['forward_tokens'].mean() / 1e6:.2f}M",
                "seconds": f"{runs['seconds'].mean():.0f}",
            }
        lines.append(line)
    return pd.DataFrame(lines).fillna("").to_markdown(index=False, disable_numparse=True)


def _difference(task: Task, first: pd.DataFrame, second: pd.DataFrame) -> str:
    examples = len(first["losses"].iloc[0])
    sides = [[_scores(run) for _, run in runs.iterrows()] for runs in (first, second)]

    def difference(picked: NDArray[np.int64]) -> float:
        means = [np.mean([task.compute_metrics(run.take(picked))[task.main_metric] for run in side]) for side in sides]
        return float(means[0] - means[1])

    low, high = percentiles(resample(difference, examples))
    mark = " *" if low > 0 or high < 0 else ""
    return f"{difference(np.arange(examples)):+.4f} ({low:+.4f} to {high:+.4f}){mark}"


def _row(variant: str, seed: int, evaluation: Evaluation) -> dict[str, Any]:
    scores = {name: getattr(evaluation.scores, name) for name in SCORES}
    means = {"loss": evaluation.loss, "mean_kl": float(evaluation.kl.mean())}
    return {"variant": variant, "seed": seed, **means, **evaluation.metrics, **scores}


def _scores(row: pd.Series) -> Scores:
    return Scores(*(np.asarray(row[name]) for name in SCORES))


def _save(rows: list[Any], out: str | Path) -> None:
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)
