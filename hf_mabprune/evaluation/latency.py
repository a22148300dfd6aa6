"""How long a forward pass takes, measured."""

import statistics
import time
from collections.abc import Sequence
from inspect import signature

import torch
from transformers import PreTrainedModel

from hf_mabprune.progress import over
from hf_mabprune.runtime import threads
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.vocabulary import large_head


@torch.inference_mode()
def measure_latency(models: Sequence[PreTrainedModel], task: Task, batch: Batch, repeats: int = 15) -> list[float]:
    """Median milliseconds of one forward pass over a batch, the models taking turns so that noise hits them alike.

    A language model of a large vocabulary gives the logits of the last position alone, as when it reads a prompt.
    """
    times: list[list[float]] = [[] for _ in models]
    with threads.fixed():
        for repeat in over(range(repeats + 2), "latency", "turns"):
            for model, taken in zip(models, times, strict=True):
                inputs = {**task.inputs(batch.to(model.device)), **task.forward_options, **_last_alone(model, task)}
                start = time.perf_counter()
                model(**inputs)
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat >= 2:  # the first two warm up
                    taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def _last_alone(model: PreTrainedModel, task: Task) -> dict[str, int]:
    """Asks for the logits of the last position, where they are many and the model can be asked."""
    large = task.predicts_tokens and large_head(model) is not None
    return {"logits_to_keep": 1} if large and "logits_to_keep" in signature(model.forward).parameters else {}
