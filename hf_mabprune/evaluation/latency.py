"""How long a forward pass takes, measured."""

import statistics
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_mabprune.progress import over
from hf_mabprune.runtime import threads
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch


@torch.inference_mode()
def measure_latency(models: Sequence[PreTrainedModel], task: Task, batch: Batch, repeats: int = 15) -> list[float]:
    """Median milliseconds of one forward pass over a batch, the models taking turns so that noise hits them alike."""
    times: list[list[float]] = [[] for _ in models]
    with threads.fixed():
        for repeat in over(range(repeats + 2), "latency", "turns"):
            for model, taken in zip(models, times, strict=True):
                inputs = batch.to(model.device)
                start = time.perf_counter()
                task.readout(model, inputs)
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat >= 2:  # the first two warm up
                    taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]
