"""Shares the units of a study out over processes, each with one thread, and stops when the run was killed."""

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

from hf_mabprune.progress import SWITCH

Made = TypeVar("Made")


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
