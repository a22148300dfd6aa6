"""Pulls a second of a launch: run it in one process and in two, one thread each, in turns.

What a process computes is told by its processor time, which other work on the machine changes little; the rest of the
time it waits, for the other processes or for a core.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.progress import over, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.session import open_session


@dataclass(frozen=True)
class Speed:
    """Says how fast pulls were, and how evenly they were shared out."""

    processes: int
    threads: int  # of each
    pulls: int
    pulls_per_second: float  # of time on the clock
    busiest_s: float  # processor time of the busiest process, summed over steps
    all_s: float  # processor time of all processes
    even: float  # all_s over the busiest's times their number: 1 if none ever waits
    effects_even: float  # the same of the estimates of all arms


@stage("benchmark")
def measure(settings: PruneConfig, steps: int = 24) -> pd.DataFrame:
    """Measures pulls in as many processes as there are; one row, the same on all of them.

    Args:
        settings: Run settings.
        steps: Calls of a policy, each of a quarter of the arms on one batch, in turns.
    """
    accelerator = make_accelerator()
    session = open_session(settings, accelerator)
    batches = session.batches["calibration"]
    data = session.dense, session.arms, session.task, batches, settings.search.reward, accelerator
    pulls = ReplayPulls(*data, outputs=session.outputs)
    spent = [_spent(partial(pulls.effects, 1, 0))]
    rng, size = np.random.default_rng(settings.seed), max(1, len(session.arms) // 4)
    started = time.perf_counter()
    for step in over(range(steps), "pulls", "steps"):
        arms = np.sort(rng.choice(len(session.arms), size, replace=False))
        spent.append(_spent(partial(pulls.pull, arms, np.full(size, step % len(batches)))))
    seconds = time.perf_counter() - started
    world, own = accelerator.num_processes, torch.tensor([spent], dtype=torch.float64, device=accelerator.device)
    everywhere = accelerator.gather(own).cpu().numpy().reshape(world, -1)  # [processes, 1 + steps]
    effects, steps_spent = everywhere[:, 0], everywhere[:, 1:]
    busiest, total = float(steps_spent.max(0).sum()), float(steps_spent.sum())
    effects_even = float(effects.sum() / (world * effects.max()))
    count = steps * size
    row = Speed(
        world, torch.get_num_threads(), count, count / seconds, busiest, total, total / (world * busiest), effects_even
    )
    return pd.DataFrame([row])


def _spent(work: Callable[[], object]) -> float:
    """Gives the processor time that some work takes in this process."""
    started = time.process_time()
    work()
    return time.process_time() - started
