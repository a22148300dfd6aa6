"""The Trainer of transformers, made to train a pruned model towards the dense one.

It takes its batches from the order that it is given, counts tokens, shows its steps, and ends on all processes when
the loss of any is not finite. The examples of a step are differentiated a few at a time, and their gradients added up,
so that memory does not grow with the batch. AdamW, gradients clipped to norm 1.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.config import RecoveryConfig
from hf_mabprune.progress import stage
from hf_mabprune.recovery.course import AfterEachStep, Course
from hf_mabprune.recovery.losses import distillation_loss, halved, hidden_distance, some_positions
from hf_mabprune.recovery.trained import in_half
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.vocabulary import large_head

# What a forward pass calls the hidden states of a stack of layers -> the input that tells its tokens from padding.
STACKS = {
    "hidden_states": "attention_mask",
    "encoder_hidden_states": "attention_mask",
    "decoder_hidden_states": "decoder_attention_mask",
}
STATES = "output_hidden_states"  # argument of models that give them


class DistillationTrainer(Trainer):
    """Trains with `distillation_loss` and `hidden_distance`, on one example after the other as `batch_order` says.

    Args:
        dense: The dense model; it gets no gradients.
        task: Task that reads logits off a forward pass.
        settings: Recovery settings.
        course: Where the training goes on from, and is kept.
        options: Arguments of `Trainer`; its data are the examples of the steps that are left.

    Attributes:
        half: Whether forward passes and products with a large head are in bfloat16, as the dense model's weights are.
        positions: Part of each example's positions that counts for the loss.
        tokens: Positions of input on this process, [2]: through a forward pass, and differentiated.
        losses: Loss of every part of a step so far, the mean over processes.
    """

    def __init__(
        self, dense: PreTrainedModel, task: Task, settings: RecoveryConfig, course: Course, **options: Any
    ) -> None:
        super().__init__(**options)
        self.dense, self.task, self.settings, self.course = dense, task, settings, course
        self.half = in_half(dense)
        self.positions = positions_that_count(settings, dense)
        self.tokens = torch.zeros(2, dtype=torch.long, device=self.args.device)
        self.losses: list[float] = []
        self.model_accepts_loss_kwargs = False  # losses are means over examples: those of a step's parts are averaged
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        """Takes the steps that are left, and shows that; `losses` and `tokens` say what happened in all."""
        course = self.course
        course.take_up(self)
        if course.done == course.steps:
            return
        with stage("recovery", course.steps, done=course.done) as work, course.open():
            self.add_callback(AfterEachStep(work, self))
            try:
                self.train()
            finally:
                extract_model_from_parallel(self.model, keep_fp32_wrapper=False)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the optimizer, with the sums of the steps before."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        self.course.take_up_optimizer(optimizer, self)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Makes the schedule of all steps, at the one that is next."""
        schedule = super().create_scheduler(self.course.steps, optimizer)
        self.course.take_up_schedule(schedule)
        return schedule

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Gives the loss of a batch; one that is not finite on any process ends the training of all."""
        settings, batch = self.settings, Batch(inputs)
        model.eval()  # no dropout: what it adds to the loss is more than a short training takes away
        student, student_states = self._forward(model, batch)
        dense: Readout | None = None
        if settings.alpha > 0 or settings.hidden_weight > 0:
            with torch.no_grad():
                dense, dense_states = self._forward(self.dense, batch)
        self.tokens += batch.tokens * torch.tensor((1 + (dense is not None), 1)).to(self.tokens)
        student = some_positions(halved(student) if self.half else student, self.positions)
        loss = distillation_loss(student, dense, settings.alpha, settings.temperature)
        if settings.hidden_weight > 0:
            distances = [
                hidden_distance(student_states[stack], dense_states[stack], batch.get(STACKS[stack]))
                for stack in dense_states
            ]
            loss = loss + settings.hidden_weight * torch.stack(distances).mean()
        # A loss that is not finite on one process makes the mean so on all of them: they stop at the same step.
        self.losses.append(float(self.accelerator.reduce(loss.detach(), "mean")))
        if not math.isfinite(self.losses[-1]):
            raise not_finite(math.ceil(len(self.losses) / self.args.gradient_accumulation_steps))
        return (loss, student) if return_outputs else loss

    def compute_loss_context_manager(self) -> ExitStack:
        """Opens nothing: forward passes alone are in mixed precision, losses in float32."""
        return ExitStack()

    def _forward(self, model: nn.Module, batch: Batch) -> tuple[Readout, dict[str, Sequence[torch.Tensor]]]:
        """Gives what a task reads off a forward pass and, if needed, the states after each layer of each stack."""
        with_states = self.settings.hidden_weight > 0
        options = {STATES: True} if with_states else {}
        half = torch.autocast(self.args.device.type, torch.bfloat16) if self.half else self.accelerator.autocast()
        with half:
            readout, outputs = self.task.run(model, batch, **options)
        states = {stack: outputs[stack][1:] for stack in STACKS if with_states and outputs.get(stack)}
        return readout, states


def positions_that_count(settings: RecoveryConfig, dense: PreTrainedModel) -> float:
    """Gives the part of each example's positions that counts for the loss.

    Where nothing is said, as many as that the products with the head, two a position, cost no more than the layers do.
    """
    head = large_head(dense)
    if settings.positions is not None or head is None:
        return settings.positions or 1.0
    counts = count_parameters(dense)
    return min(1.0, (counts["ffn_parameters"] + counts["attention_parameters"]) / (2 * head.weight.numel()))


def training_arguments(
    settings: RecoveryConfig,
    shape: tuple[int, int],
    done: int,
    together: int,
    accelerator: Accelerator,
    folder: str,
    seed: int,
) -> TrainingArguments:
    """Gives Trainer's settings: its engine is the one that is there already, it saves nothing and keeps the order.

    Args:
        settings: Recovery settings.
        shape: Steps, and examples of a step on each process.
        done: Steps that were taken before the run was stopped.
        together: Number of these that are differentiated at a time.
        accelerator: Accelerator of the launch.
        folder: Folder that Trainer may write to; nothing is expected there.
        seed: Seed of dropout.
    """
    return TrainingArguments(
        output_dir=folder,
        accelerator_config={"use_configured_state": True},
        use_cpu=accelerator.device.type == "cpu",
        bf16=accelerator.mixed_precision == "bf16",
        fp16=accelerator.mixed_precision == "fp16",
        max_steps=max(1, shape[0] - done),
        per_device_train_batch_size=together,
        gradient_accumulation_steps=shape[1] // together,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(settings.warmup_ratio * shape[0]),
        weight_decay=settings.weight_decay,
        seed=seed,
        average_tokens_across_devices=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level_replica="passive",
    )


def not_finite(step: int) -> ValueError:
    """Gives the error for a loss, or weights, that are not finite after so many steps."""
    return ValueError(
        f"recovery: the loss is not finite at step {step}, so the pruned model keeps the weights it had; lower "
        "recovery.learning_rate, or look for broken calibration examples"
    )
