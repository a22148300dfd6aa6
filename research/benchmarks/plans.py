"""What `mabprune plan` foresees of a run, beside what the run takes: seconds, and memory beside the libraries.

Memory is that of `research.benchmarks.memory`, with the weights where torch reads them from their file as they are: a
plan counts them wherever they lie. Give the machine nothing else to do.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hf_mabprune.config import PruneConfig
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.preview import plan_run
from research.benchmarks.memory import MIB, clear, held, watched

MAPS = Path("/proc/self/maps")


def measure(runs: Sequence[PruneConfig]) -> pd.DataFrame:
    """Runs and plans each of several configs: one row a config, then the median and the worst ratio.

    Args:
        runs: Run settings.
    """
    rows = [_row(settings) for settings in runs]
    ratios = pd.DataFrame(rows)[["of_time", "of_memory"]]
    away = ratios.where(ratios > 1, 1 / ratios)  # times too much or too little
    ends = [
        {"model": "median, either way", **away.median().to_dict()},
        {"model": "worst, either way", **away.max().to_dict()},
    ]
    return pd.DataFrame([*rows, *ends])


def _row(settings: PruneConfig) -> dict[str, float | str]:
    """Runs first, so that nothing of the plan is in memory then."""
    output = settings.output.model_copy(update={"overwrite": True})
    settings = settings.model_copy(update={"output": output})
    clear()
    before, started = held(), time.perf_counter()
    with watched() as peak:
        session = prune_from_config(settings).finished.session
    seconds, weights = time.perf_counter() - started, session.dense.get_memory_footprint()
    mapped = str(Path(settings.model.name).resolve()) in MAPS.read_text()
    taken = peak.bytes - before + weights * mapped
    del session
    clear()
    plan = plan_run(settings)
    return {
        "model": Path(settings.model.name).name,
        "seconds": seconds,
        "planned": plan.seconds,
        "of_time": plan.seconds / seconds,
        "MiB": taken / MIB,
        "planned MiB": plan.memory_bytes / MIB,
        "of_memory": plan.memory_bytes / taken,
    }
