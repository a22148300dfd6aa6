"""Bandit policies side by side: same model, data, arms, target and budget; only policy, reward and seed differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hf_mabprune import layouts
from hf_mabprune.comparison import Judge
from hf_mabprune.config import PruneConfig, check
from hf_mabprune.evaluation import Evaluation, bootstrap_interval
from hf_mabprune.pipeline import choose_layout, load_model, make_accelerator, prepare, search
from hf_mabprune.tasks.splits import load_splits

RANDOM = "random"


def compare(settings: PruneConfig, variants: Sequence[str], seeds: Sequence[int], out: str | Path) -> str:
    """Runs every variant with every seed and writes one row a run.

    Args:
        settings: What all runs share.
        variants: `policy` or `policy:reward`; a policy alone takes the reward of the settings.
        seeds: Of policies, of the order of calibration data, and of the random control.
        out: Parquet file of the rows; it grows with each run.

    Returns:
        The table: metric of each seed, cost, and the paired differences to `random` and to `uniform`.
    """
    accelerator = make_accelerator()
    model, tokenizer = load_model(settings.model, settings.task)
    splits = load_splits(settings.task)
    rows: list[dict[str, object]] = []
    found: dict[str, list[Evaluation]] = {}
    for seed in seeds:
        judge = prepare(vary(settings, {}, seed), model.to(accelerator.device), tokenizer, splits, accelerator)
        plans = layouts.make_plans(model, judge.arms, judge.totals, settings.prune)
        for variant in variants:
            policy, _, reward = variant.partition(":")
            run = vary(settings, {"policy": {"name": policy}, **({"reward": reward} if reward else {})}, seed)
            result, cost = search(run, judge, plans.search)
            selection = choose_layout(judge, plans, result, run)
            evaluation = judge.masked(selection.kept, "test", intervals=False)
            found.setdefault(variant, []).append(evaluation)
            rows.append(_row(variant, seed, judge, evaluation) | vars(cost))
            _save(rows, out)
        evaluation = judge.masked(selection.random(seed).kept, "test", intervals=False)
        found.setdefault(RANDOM, []).append(evaluation)
        rows.append(_row(RANDOM, seed, judge, evaluation))
        everything = np.ones(len(judge.arms), dtype=bool)
        rows.append(_row("unpruned", seed, judge, judge.masked(everything, "test", intervals=False)))
        _save(rows, out)
    return table(pd.DataFrame(rows), found, judge)


def vary(settings: PruneConfig, search_changes: dict[str, object], seed: int) -> PruneConfig:
    """The same settings with another seed and other search settings."""
    changed = settings.model_dump()
    changed["search"] |= search_changes
    return check(changed | {"seed": seed})


def table(rows: pd.DataFrame, found: dict[str, list[Evaluation]], judge: Judge) -> str:
    """One line a variant: its runs, what they cost, and its paired differences with their 95% intervals."""
    metric = judge.task.main_metric
    lines = []
    for variant, runs in rows.groupby("variant", sort=False):
        line = {
            "variant": variant,
            metric: " ".join(f"{value:.4f}" for value in runs[metric]),
            "loss": f"{runs['loss'].mean():.4f}",
            "KL": f"{runs['kl'].mean():.4f}",
        }
        if variant in found:
            for control in (RANDOM, "uniform"):
                if control in found and control != variant:
                    line[f"minus {control} (95%)"] = _difference(judge, found[str(variant)], found[control])
        if "pulls" in runs and runs["pulls"].notna().all():
            line |= {
                "pulls": f"{runs['pulls'].mean():,.0f}",
                "forward tokens": f"{runs['forward_tokens'].mean() / 1e6:.2f}M",
                "seconds": f"{runs['seconds'].mean():.0f}",
            }
        lines.append(line)
    return pd.DataFrame(lines).fillna("").to_markdown(index=False, disable_numparse=True)


def _difference(judge: Judge, first: list[Evaluation], second: list[Evaluation]) -> str:
    """Metric of the first minus that of the second, mean over seeds; the bootstrap resamples test examples.

    Marked `*` where the interval excludes zero.
    """
    task, examples = judge.task, len(first[0].kl)

    def difference(picked: np.ndarray) -> float:
        values = [
            [task.compute_metrics(run.scores.take(picked))[task.main_metric] for run in runs]
            for runs in (first, second)
        ]
        return float(np.mean(values[0]) - np.mean(values[1]))

    low, high = bootstrap_interval(difference, examples)
    mark = " *" if low > 0 or high < 0 else ""
    return f"{difference(np.arange(examples)):+.4f} ({low:+.4f} to {high:+.4f}){mark}"


def _row(variant: str, seed: int, judge: Judge, evaluation: Evaluation) -> dict[str, object]:
    return {
        "variant": variant,
        "seed": seed,
        "loss": evaluation.loss,
        "kl": float(evaluation.kl.mean()),
        "examples": len(evaluation.kl),
        **evaluation.metrics,
    }


def _save(rows: list[dict[str, object]], out: str | Path) -> None:
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)
