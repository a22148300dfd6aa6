"""Shares the units of a study out over processes, each with one thread, and stops when the run was killed."""

import argparse
import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import joblib
import torch
import transformers
from datasets.utils import disable_progress_bars
from threadpoolctl import threadpool_limits

from hf_mabprune.progress import SWITCH, stage

Made = TypeVar("Made")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds --processes to the options of a study."""
    parser.add_argument(
        "--processes",
        type=int,
        default=joblib.cpu_count(),
        help="that share the work, one for each core if not given; cells are the same for any",
    )


def processes_of(options: argparse.Namespace) -> int:
    """Gives the number that was asked for.

    Raises:
        ValueError: If there is none.
    """
    processes: int = options.processes
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    return processes


def run_all(tasks: Sequence[Callable[[], str]], processes: int, noun: str, done: int = 0) -> None:
    """Runs tasks that give their names, in so many processes, and shows how far it is; `done` were there before."""
    with stage("benchmark", done + len(tasks), noun, done) as work:
        for name in shared_out(tasks, processes):
            work.count(work.done + 1, note=name)


def shared_out(tasks: Sequence[Callable[[], Made]], processes: int) -> Iterator[Made]:
    """Runs tasks in so many processes; yields what they give, in the order in which they end."""
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        pool = joblib.Parallel(n_jobs=min(processes, max(1, len(tasks))), return_as="generator_unordered")
        yield from pool(joblib.delayed(_quietly)(task, os.getpid()) for task in tasks)


def _quietly(task: Callable[[], Made], run: int) -> Made:
    """Runs a task with one thread, and without the progress of what the package does inside, in the process of the run
    or in one that it has started."""
    if run not in (os.getpid(), os.getppid()):
        raise RuntimeError("the run that this belongs to was killed")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    shown = os.environ.get(SWITCH)
    os.environ[SWITCH] = "off"
    gc.freeze()  # every training collects garbage, and what was imported is none
    try:
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", UserWarning)  # that data are few
            return task()
    finally:
        gc.unfreeze()
        os.environ.pop(SWITCH) if shown is None else os.environ.update({SWITCH: shown})
