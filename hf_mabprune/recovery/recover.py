"""Recovery: a pruned model is trained on the calibration split, with the dense model as its dense.

Over the positions that count, with z the student's logits, z0 the dense's and y the labels, the loss is

    alpha * T^2 * KL(softmax(z0 / T) || softmax(z / T)) + (1 - alpha) * cross_entropy(z, y) + hidden_weight * distance

with a task's own loss and divergence where its outputs are no classes (Hinton et al., arXiv 1503.02531; T^2 keeps the
gradients of both terms alike when T changes). The distance compares hidden states after each layer as they are, since
pruning never changes the hidden size (Sun et al., arXiv 1908.09355). AdamW, gradients clipped to norm 1.
Symbols: N examples, B in a batch, n in an optimizer step; P positions whose logits may count; C classes or vocabulary;
T tokens; D hidden size.
"""

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel, set_seed
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_mabprune.architectures import architecture_of
from hf_mabprune.config import RecoveryConfig
from hf_mabprune.tasks.base import Batch, Task, column_of
from hf_mabprune.tasks.readout import CHUNK, Readout

GROUPED = 50  # batches whose examples are sorted by length together
LAST = 0.1  # part of the steps that the final loss is a mean over


@dataclass(frozen=True)
class RecoveryFigures:
    """What recovery did and cost, over all processes.

    Attributes:
        epochs: Passes over the training examples.
        steps: Of the optimizer.
        examples: That were there to train on.
        forward_tokens: Positions of input that went through student or dense, padding included.
        backward_tokens: Positions that the student was differentiated on.
        seconds: Of wall-clock time.
        loss: Mean training loss over the last tenth of the steps.
    """

    method: str
    epochs: float
    steps: int
    examples: int
    forward_tokens: int
    backward_tokens: int
    seconds: float
    loss: float

    def after(self, earlier: "RecoveryFigures | None") -> "RecoveryFigures":
        """With what an earlier training of the same model cost."""
        if earlier is None:
            return self
        return replace(
            self,
            epochs=earlier.epochs + self.epochs,
            steps=earlier.steps + self.steps,
            forward_tokens=earlier.forward_tokens + self.forward_tokens,
            backward_tokens=earlier.backward_tokens + self.backward_tokens,
            seconds=earlier.seconds + self.seconds,
        )


def check_recovery(settings: RecoveryConfig, processes: int) -> None:
    """Everything that can be refused before any compute.

    Raises:
        ValueError: If a package is missing, or the processes of the launch cannot share a batch.
    """
    if settings.method == "lora" and find_spec("peft") is None:
        raise ValueError("recovery.method lora needs the package peft: pip install 'hf_mabprune[lora]', or take full")
    if settings.batch_size % processes:
        raise ValueError(
            f"recovery.batch_size must be a multiple of the {processes} processes that share a step, "
            f"got {settings.batch_size}"
        )


def recover(
    small: PreTrainedModel,
    dense: PreTrainedModel,
    task: Task,
    examples: Dataset,
    settings: RecoveryConfig,
    accelerator: Accelerator,
    seed: int = 0,
) -> RecoveryFigures:
    """Trains a pruned model in place. Runs on every process of a launch; all end with the same weights.

    Args:
        small: The pruned model, of either layout, on the accelerator's device. It is left in evaluation mode, and a
            half-precision model is trained in float32 (method full) and rounded again.
        dense: The dense model, there too; it gets no gradients and is left as it was.
        examples: Encoded by `task`, of the calibration split: never validation or test data.
        seed: Of the order of the examples, dropout and low-rank updates.

    Raises:
        ValueError: As `check_recovery`, for no examples, or if the loss is not finite; `small` has its weights from
            before then, as after any other error.
    """
    check_recovery(settings, accelerator.num_processes)
    if not len(examples):
        raise ValueError("recovery takes at least one example, got none; choose a larger calibration slice")
    set_seed(seed)
    start = time.perf_counter()
    order = batch_order(lengths_of(examples), settings, seed)
    with _undone_on_error(small), _evaluating(dense), tempfile.TemporaryDirectory() as folder:
        with _low_rank(small, settings.lora_rank) if settings.method == "lora" else _all_trainable(small) as trained:
            trainer = _Distillation(
                dense=dense,
                task=task,
                settings=settings,
                model=trained,
                args=_arguments(settings, order.shape, accelerator, folder, seed),
                train_dataset=examples.select(order.ravel()),
                data_collator=task.collate,
            )
            losses = trainer.run(visible=accelerator.is_main_process and sys.stderr.isatty())
        if not all(bool(parameter.isfinite().all()) for parameter in small.parameters()):
            raise _not_finite(len(order))
    forward, backward = accelerator.reduce(trainer.tokens).tolist()
    return RecoveryFigures(
        method=settings.method,
        epochs=order.size / len(examples),
        steps=len(order),
        examples=len(examples),
        forward_tokens=forward,
        backward_tokens=backward,
        seconds=time.perf_counter() - start,
        loss=float(np.mean(losses[-math.ceil(LAST * len(losses)) :])),
    )


def lengths_of(examples: Dataset) -> NDArray[np.int64]:
    """[N], tokens of each encoded example."""
    return np.asarray(pc.list_value_length(column_of(examples, "input_ids")), dtype=np.int64)


def batch_order(lengths: NDArray[np.int64], settings: RecoveryConfig, seed: int) -> NDArray[np.int64]:
    """Which examples go into which optimizer step, [steps, n]; each epoch is a permutation of its own.

    Batches are cut from runs of 50 batches that are sorted by length, which saves most of the padding, and come in
    random order. The order depends on the seed alone, so any number of processes takes the same steps.

    Args:
        lengths: [N], tokens of each example.
        seed: Of the order.
    """
    rng, size = np.random.default_rng(seed), settings.batch_size
    steps = max(1, round(settings.epochs * len(lengths) / size))
    steps = min(steps, settings.max_steps or steps)
    epochs = math.ceil(steps * size / len(lengths))
    stream = np.concatenate([rng.permutation(len(lengths)) for _ in range(epochs)])[: steps * size]
    for start in range(0, len(stream), GROUPED * size):
        run = stream[start : start + GROUPED * size]
        run[:] = run[np.argsort(lengths[run], kind="stable")]
    batches: NDArray[np.int64] = rng.permutation(stream.reshape(steps, size))
    return batches


def distillation_loss(student: Readout, dense: Readout | None, alpha: float, temperature: float) -> torch.Tensor:
    """alpha * T^2 * divergence from the dense, both at temperature T, + (1 - alpha) * task loss; see `Readout`.

    Differentiable; a few examples are worked on at a time, so the extra memory does not grow with the batch.

    Args:
        student, dense: Logits [B, P, C] each; the dense may be None where alpha is 0.
        alpha: Weight of the dense, 0 to 1.
        temperature: T > 0.

    Returns:
        The mean over examples of the means over their positions that count, in nats for classes.
    """
    loss = torch.zeros(())
    if alpha < 1:
        loss = (1 - alpha) * student.losses().mean()
    if alpha > 0 and dense is not None:
        examples = max(1, CHUNK // student.logits[0].numel())
        chunks = [each.split(examples) for each in (student.logits, dense.logits, student.targets)]

        def moved(*tensors: torch.Tensor) -> torch.Tensor:
            ours, theirs = (replace(student, logits=z / temperature, targets=tensors[2]) for z in tensors[:2])
            return ours.divergence(theirs)

        parts = [
            checkpoint(moved, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(*chunks, strict=True)
        ]
        loss = loss + alpha * temperature**2 * torch.cat(parts).mean()
    return loss


def hidden_distance(
    student: Sequence[torch.Tensor], dense: Sequence[torch.Tensor], attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error between hidden states, in units of each token's mean square in the dense.

    Without units, the few tokens and layers with huge states would be all that counts.

    Args:
        student, dense: [B, T, D] each, one after each layer.
        attention_mask: [B, T], 1 for tokens; None where nothing is padded.

    Returns:
        The mean over layers and tokens, float32.
    """
    errors = [
        (ours.float() - theirs.float()).square().mean(-1) / theirs.float().square().mean(-1).clamp(min=1e-12)
        for ours, theirs in zip(student, dense, strict=True)
    ]
    mean = torch.stack(errors).mean(0)
    weights = torch.ones_like(mean) if attention_mask is None else attention_mask.reshape(mean.shape)
    return (mean * weights).sum() / weights.sum()


class _Distillation(Trainer):
    """The Trainer, with this loss. It sees one example after the other, as `batch_order` says."""

    def __init__(self, dense: PreTrainedModel, task: Task, settings: RecoveryConfig, **options: Any) -> None:
        super().__init__(**options)
        self.dense, self.task, self.settings = dense, task, settings
        self.tokens = torch.zeros(2, dtype=torch.long, device=self.args.device)  # forward, backward
        self.losses: list[float] = []
        self.remove_callback(PrinterCallback)

    def run(self, visible: bool) -> list[float]:
        """Trains, with a bar or without, and gives the loss of every step."""
        bar = _Bar(self.losses)
        if visible:
            self.add_callback(bar)
        try:
            self.train()
        finally:
            bar.close()
            extract_model_from_parallel(self.model, keep_fp32_wrapper=False)
        return self.losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; one that is not finite on any process ends the training of all."""
        settings = self.settings
        student, states = self._forward(model, inputs)
        dense: Readout | None = None
        if settings.alpha > 0 or settings.hidden_weight > 0:
            with torch.no_grad(), self.accelerator.autocast():
                dense, wanted = self._forward(self.dense, inputs)
        self.tokens += inputs["input_ids"].numel() * torch.tensor((1 + (dense is not None), 1)).to(self.tokens)
        loss = distillation_loss(student, dense, settings.alpha, settings.temperature)
        if settings.hidden_weight > 0:
            loss = loss + settings.hidden_weight * hidden_distance(states, wanted, inputs.get("attention_mask"))
        self.losses.append(float(self.accelerator.reduce(loss.detach(), "mean")))
        if not math.isfinite(self.losses[-1]):
            raise _not_finite(len(self.losses))
        return (loss, student) if return_outputs else loss

    def _forward(self, model: nn.Module, batch: Batch) -> tuple[Readout, Sequence[torch.Tensor]]:
        """What the task reads off a forward pass, and the hidden states after each layer, [B, T, D], if wanted."""
        wanted = self.settings.hidden_weight > 0
        options = {**self.task.forward_options, **({"output_hidden_states": True} if wanted else {})}
        outputs = model(**self.task.inputs(batch), **options)
        return self.task.read(outputs.logits, batch), outputs.hidden_states[1:] if wanted else ()


class _Bar(ProgressCallback):
    """Steps done, steps a second, time left and the loss; on the main process only."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        super().on_step_end(args, state, control)
        if self.training_bar is not None:
            self.training_bar.set_postfix(loss=f"{self.losses[-1]:.4f}")

    def on_log(self, *_: Any, **__: Any) -> None:
        """The Trainer's own summary is part of the figures."""

    def close(self) -> None:
        if self.training_bar is not None:
            self.training_bar.close()


def _arguments(
    settings: RecoveryConfig, shape: tuple[int, ...], accelerator: Accelerator, folder: str, seed: int
) -> TrainingArguments:
    """Trainer's settings: its engine is the one that is there already, it saves nothing and keeps the order."""
    steps, size = shape
    return TrainingArguments(
        output_dir=folder,
        accelerator_config={"use_configured_state": True},
        use_cpu=accelerator.device.type == "cpu",
        bf16=accelerator.mixed_precision == "bf16",
        fp16=accelerator.mixed_precision == "fp16",
        max_steps=steps,
        per_device_train_batch_size=size // accelerator.num_processes,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        seed=seed,
        average_tokens_across_devices=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level_replica="passive",
    )


@contextmanager
def _all_trainable(small: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """All weights take gradients, in float32: in half precision small steps would be rounded away."""
    for parameter in small.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    yield small


@contextmanager
def _low_rank(small: PreTrainedModel, rank: int) -> Iterator[Any]:
    """Updates of low rank (Hu et al., arXiv 2106.09685) of every projection that pruning can cut; all else is frozen.

    They are merged into the weights when the block ends well, and taken out otherwise.
    """
    from peft import LoraConfig, get_peft_model

    paths = [path for site in architecture_of(small).sites(small) for path in site.linears()]
    trained: Any = get_peft_model(small, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=paths))
    try:
        yield trained
    except BaseException:
        trained.unload()
        raise
    trained.merge_and_unload()


@contextmanager
def _undone_on_error(small: PreTrainedModel) -> Iterator[None]:
    """After the block the model has its precision, flags and config again; after an error its weights too."""
    before = [(p, p.detach().to("cpu", copy=True), p.requires_grad) for p in small.parameters()]
    config = dict(vars(small.config))
    try:
        yield
    except BaseException:
        for parameter, weights, _ in before:
            parameter.data = weights.to(parameter.device)
        raise
    finally:
        for parameter, weights, takes_gradients in before:
            parameter.data = parameter.data.to(weights.dtype)
            parameter.requires_grad_(takes_gradients)
            parameter.grad = None
        vars(small.config).clear()
        vars(small.config).update(config)
        vars(small).pop("_is_accelerate_prepared", None)
        small.eval()


@contextmanager
def _evaluating(dense: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode while the block runs."""
    training = dense.training
    dense.eval()
    try:
        yield
    finally:
        dense.train(training)


def _not_finite(step: int) -> ValueError:
    return ValueError(
        f"recovery: the loss is not finite at step {step}, so the pruned model keeps the weights it had; lower "
        "recovery.learning_rate, or look for broken calibration examples"
    )
