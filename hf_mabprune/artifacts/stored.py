"""What any stored checkpoint is worth, whoever made it."""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.architectures.cost import count_macs, count_parameters
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checkpoints.offload import on_device
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.config import EvaluateConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.evaluation.figures import ModelFigures
from hf_mabprune.evaluation.latency import measure_latency
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of
from hf_mabprune.progress import stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.processes import main_first
from hf_mabprune.session import load_model
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch, typical_example
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
    opened = open_checkpoint(settings)
    task = opened.task
    if task.compares_with_dense:
        raise ValueError(
            f"metric '{task.main_metric}' compares with the dense model, which is not here; set task.metrics to "
            "others, or name a score in task.columns"
        )
    batches = opened.test_batches()
    found = evaluate(forward_of(opened.model, task, batches), task, batches, opened.accelerator)
    try:
        length = RunFolder(settings.model.name).read()[1].sequence_length
    except ValueError:  # a checkpoint that no run has made
        length = None
    weights = sum(file.stat().st_size for file in Path(settings.model.name).glob("*.safetensors"))
    latency = measure_latency([opened.model], task, batches[len(batches) // 2])[0]
    figures = figures_of(opened.model, task, found, task.inputs(typical_example(batches, length)), latency)
    return task, replace(figures, checkpoint_bytes=weights or None)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A stored model with the data of a config.

    Attributes:
        settings: Which checkpoint and data.
        model: On the device of the launch, in evaluation mode.
        splits: Split -> rows.
    """

    settings: EvaluateConfig
    model: PreTrainedModel
    processor: Processor
    task: Task
    splits: dict[str, Dataset]
    accelerator: Accelerator

    def test_batches(self) -> list[Batch]:
        """Draws what the model is measured on, sorted by length."""
        settings = self.settings.task
        encoded = encode_sample(self.task, self.splits["test"], settings.evaluation_examples, self.settings.seed)
        return list(batches_of(self.task, encoded, settings.batch_size, by_length=True))


def open_checkpoint(settings: EvaluateConfig) -> OpenedCheckpoint:
    """Loads a checkpoint and its data; errors as those of `evaluate_checkpoint`."""
    accelerator = make_accelerator()
    splits = main_first(accelerator, lambda: load_splits(settings.task, settings.seed))
    model, processor = load_model(settings.model, settings.task, {"test": splits["test"]})
    on_device(model, accelerator.device).eval()
    task = build_task(settings.task, copy.deepcopy(processor), model.config, type(model).__name__)
    return OpenedCheckpoint(settings, model, processor, task, splits, accelerator)


def figures_of(
    model: PreTrainedModel, task: Task, found: Evaluation, example: Batch, latency_ms: float | None = None
) -> ModelFigures:
    """Puts together what was measured of a model; the divergence from a dense one is the caller's to add.

    Args:
        example: Inputs of one sequence, which MACs are counted for.
    """
    counts: dict[str, Any] = dict(count_parameters(model))
    return ModelFigures(
        **counts,
        macs=count_macs(model, example),
        loss=found.loss if task.has_loss else math.nan,
        kl=None,
        metrics=found.metrics,
        intervals=found.intervals,
        latency_ms=latency_ms,
    )
