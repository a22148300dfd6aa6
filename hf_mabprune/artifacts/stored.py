"""What any stored checkpoint is worth, whoever made it."""

import math
from pathlib import Path
from typing import Any

from hf_mabprune.architectures.cost import count_macs, count_parameters
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checkpoints.offload import on_device
from hf_mabprune.config import EvaluateConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.evaluation.figures import ModelFigures
from hf_mabprune.evaluation.latency import measure_latency
from hf_mabprune.evaluation.quality import evaluate, forward_of
from hf_mabprune.progress import stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.processes import main_first
from hf_mabprune.session import load_model
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import typical_example
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of, encode_sample


@stage("evaluation")
def evaluate_checkpoint(settings: EvaluateConfig) -> tuple[Task, ModelFigures]:
    """Quality on the test split, size, MACs and latency of any checkpoint of a supported family.

    Args:
        settings: The checkpoint and the data that it is measured on.

    Returns:
        The task, which says what the metrics are, and the figures; the KL divergence is None, for there is no
        dense model to compare with.

    Raises:
        ValueError: For a setting, a model or data that cannot work.
        OSError: If model or data cannot be read.
    """
    accelerator = make_accelerator()
    splits = main_first(accelerator, lambda: load_splits(settings.task, settings.seed))
    model, processor = load_model(settings.model, settings.task, {"test": splits["test"]})
    on_device(model, accelerator.device).eval()
    task = build_task(settings.task, processor, model.config, type(model).__name__)
    if task.compares_with_dense:
        raise ValueError(
            f"metric '{task.main_metric}' compares with the dense model, which is not here; set task.metrics to "
            "others, or name a score in task.columns"
        )
    encoded = encode_sample(task, splits["test"], settings.task.evaluation_examples, settings.seed)
    batches = batches_of(task, encoded, settings.task.batch_size, by_length=True)
    found = evaluate(forward_of(model, task, batches), task, batches, accelerator)
    try:
        length = RunFolder(settings.model.name).read()[1].sequence_length
    except ValueError:  # a checkpoint that no run has made
        length = None
    weights = sum(file.stat().st_size for file in Path(settings.model.name).glob("*.safetensors"))
    counts: dict[str, Any] = dict(count_parameters(model))
    return task, ModelFigures(
        **counts,
        macs=count_macs(model, task.inputs(typical_example(batches, length))),
        loss=found.loss if task.has_loss else math.nan,
        kl=None,
        metrics=found.metrics,
        intervals=found.intervals,
        latency_ms=measure_latency([model], task, batches[len(batches) // 2])[0],
        checkpoint_bytes=weights or None,
    )
