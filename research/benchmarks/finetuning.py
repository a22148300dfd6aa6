"""Makes models to prune: a base model with a new head, trained with transformers.Trainer on a task of ours."""

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_mabprune.architectures import family_of
from hf_mabprune.checkpoints.load import load_config
from hf_mabprune.checkpoints.processors import Processor, load_processor
from hf_mabprune.checkpoints.save import round_weights, save_checkpoint
from hf_mabprune.config import PruneConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of
from hf_mabprune.progress import Work, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.runtime.places import check_output_dir
from hf_mabprune.runtime.processes import main_first, on_main
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of, encode_sample


@dataclass(frozen=True)
class Training:
    """How a model is fine-tuned: AdamW, linear decay after a warm-up of 6% of the steps, like lengths together.

    Attributes:
        epochs: Passes over the training data.
        learning_rate: Learning rate at its peak.
        batch_size: Examples a step and process.
        max_train_examples: Cap on training rows (windows, for running text), drawn at random; None takes all.
        save_dtype: Precision of the saved weights; metrics are measured on weights rounded to it.
    """

    epochs: float = 2.0
    learning_rate: float = 6e-5
    batch_size: int = 64
    max_train_examples: int | None = None
    save_dtype: str = "float32"


@dataclass(frozen=True)
class FineTuned:
    """Says what came of a training.

    Attributes:
        task: Task with the head's classes.
        examples: Number of examples that it was trained on.
        seconds: Seconds of training alone.
        quality: Split -> what the saved weights are worth, for validation and test.
    """

    task: Task
    examples: int
    seconds: float
    quality: dict[str, Evaluation]

    def __str__(self) -> str:
        lines = [f"trained on {self.examples:,} examples in {self.seconds:.0f} s"]
        for split, measured in self.quality.items():
            metrics = ", ".join(
                f"{name} {value:.4f} ({measured.intervals[name][0]:.4f} to {measured.intervals[name][1]:.4f})"
                for name, value in measured.metrics.items()
            )
            lines.append(f"{split}: {metrics}; loss {measured.loss:.4f}; {len(measured.scores.losses):,} examples")
        return "\n".join(lines)


def finetune(base: str, out: str | Path, settings: PruneConfig, training: Training) -> FineTuned:
    """Trains on the calibration slice of a config, and saves a plain checkpoint with its tokenizer or image
    processor.

    Args:
        base: Hub name or folder of a model of a supported family, with or without a head.
        out: Folder of the checkpoint; it must not exist.
        settings: Settings, of which only the task and the seed are read. The validation and the test slice are
            measured, nothing else.
        training: How the model is trained.

    Returns:
        Time, and quality of the saved weights, measured as every model of this package is.

    Raises:
        ValueError: For a setting, a model or data that cannot work.
        OSError: If model or data cannot be read, or `out` exists.
    """
    check_output_dir(out, overwrite=False)
    if settings.task.type is None:
        raise ValueError(f"task.type must be set, for a base model has no head yet: {', '.join(TASKS.names())}")
    set_seed(settings.seed)
    accelerator = make_accelerator()
    splits = main_first(accelerator, lambda: load_splits(settings.task, settings.seed))
    model = load_base(base, settings, splits["calibration"])
    processor = load_processor(TASKS.get(str(settings.task.type)).processor_class, base)
    task = build_task(settings.task, copy.deepcopy(processor), model.config, type(model).__name__)
    for split, dataset in splits.items():
        task.check(dataset, split)
    examples = encode_sample(task, splits["calibration"], training.max_train_examples, settings.seed)
    start = time.perf_counter()
    train(model, task, examples, training, settings.seed)
    seconds = time.perf_counter() - start
    dtype = getattr(torch, training.save_dtype)
    round_weights(model.to(accelerator.device).eval(), dtype)
    quality = {split: _measured(model, task, splits[split], settings, accelerator) for split in ("validation", "test")}
    on_main(accelerator, lambda: _save(model, processor, dtype, out))
    return FineTuned(task, len(examples), seconds, quality)


@stage("loading model")
def load_base(base: str, settings: PruneConfig, data: Dataset) -> PreTrainedModel:
    """Loads a model with the head that the task needs; its weights are new where the checkpoint has none that fit.

    Args:
        base: Hub name or folder of the model.
        settings: Settings, of which only the task is read.
        data: Examples that say which classes there are.

    Raises:
        ValueError: If the family of the model is not supported.
    """
    stored = load_config(base)
    family_of(stored)
    kind = TASKS.get(str(settings.task.type))
    head = kind.new_head(data, dict(settings.task.columns))
    load = getattr(transformers, kind.auto_class).from_pretrained
    model: PreTrainedModel = load(base, dtype=torch.float32, ignore_mismatched_sizes=True, **head)
    return model


def train(model: PreTrainedModel, task: Task, examples: Dataset, training: Training, seed: int) -> None:
    """Trains a model in place, with the loss of the task.

    Args:
        model: A model with the task's head.
        task: Task that makes batches.
        examples: Examples that the task has encoded.
        training: How the model is trained.
        seed: Seed of the order of examples and of dropout.
    """

    def collate(rows: list[dict[str, Any]]) -> Batch:
        examples = [{name: value for name, value in row.items() if name != "length"} for row in rows]
        return task.collate(examples)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=training.epochs,
            learning_rate=training.learning_rate,
            per_device_train_batch_size=training.batch_size,
            warmup_steps=0.06,
            lr_scheduler_type="linear",
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_steps=0.05,
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        rows = examples.add_column("length", task.lengths(examples).tolist())
        with stage("fine-tuning") as work:
            trainer = TaskTrainer(task, model, arguments, collate, rows, callbacks=[StepsShown(work)])
            trainer.remove_callback(PrinterCallback)
            trainer.train()


class StepsShown(TrainerCallback):
    """Shows steps done, the epoch and the loss of a training.

    Args:
        work: The stage that the training is.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.loss = work, ""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Takes the loss from what is logged."""
        if logs and "loss" in logs:
            self.loss = f", loss {float(logs['loss']):.4f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves on by a step."""
        self.work.count(state.global_step, state.max_steps, note=f"epoch {state.epoch or 0:.2f}{self.loss}")


class TaskTrainer(Trainer):
    """Trains with the loss of a task, mean over the examples of a step.

    Args:
        task: Task that makes batches and reads what a model says of them.
        given: Arguments of `Trainer`.
        options: Further ones.
    """

    def __init__(self, task: Task, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.task = task
        self.model_accepts_loss_kwargs = False  # losses are means over examples: those of a step's parts are averaged

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Gives the loss of a batch."""
        readout, _outputs = self.task.run(model, Batch(inputs))
        return readout.losses().mean()


def _measured(
    model: PreTrainedModel, task: Task, split: Dataset, settings: PruneConfig, accelerator: Accelerator
) -> Evaluation:
    """What a model is worth on a split."""
    encoded = encode_sample(task, split, settings.task.evaluation_examples, settings.seed)
    batches = batches_of(task, encoded, settings.task.batch_size)
    with stage("evaluation"):
        return evaluate(forward_of(model, task), task, batches, accelerator)


@stage("saving")
def _save(model: PreTrainedModel, processor: Processor, dtype: torch.dtype, out: str | Path) -> None:
    with atomic_folder(out) as folder:
        save_checkpoint(model, folder, processor, dtype)
