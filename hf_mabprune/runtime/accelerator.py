"""Accelerate's engine for a run: where it runs, with how many processes, and what tracks it."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from hf_mabprune.config import PruneConfig
from hf_mabprune.registry import nearest


def check_trackers(names: list[str]) -> None:
    """Raises ValueError for a tracker that Accelerate does not know, or whose package is not installed."""
    known = [str(tracker.value) for tracker in LoggerType if tracker != LoggerType.ALL]
    for name in names:
        if name not in known:
            raise ValueError(f"output.log_with: no tracker '{name}'.{nearest(name, known)} Known: {', '.join(known)}")
        if LoggerType(name) not in get_available_trackers():
            raise ValueError(f"output.log_with: tracker '{name}' needs its package: pip install {name}")


def make_accelerator(settings: PruneConfig | None = None, logs: Path | None = None) -> Accelerator:
    """Makes Accelerate's engine, on CPU where there is no GPU, with the trackers that the settings name.

    Args:
        settings: Run settings; None tracks nothing.
        logs: Folder of trackers that write files, where the settings name no other.

    Raises:
        ValueError: If the launch asked for several processes and this one would run alone.
    """
    output = settings.output if settings else None
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=(list(output.log_with) or None) if output else None,
        project_dir=(output.log_dir or logs) if output and output.log_with else None,
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise ValueError(
            f"the launch asked for {asked} processes, Accelerate runs {accelerator.num_processes}: use a launch file "
            "from configs/accelerate"
        )
    return accelerator
