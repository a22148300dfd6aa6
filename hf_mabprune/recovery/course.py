"""How far a training has come: shown, kept on disk, and taken up again with the optimizer as it was."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mabprune.progress import Work

if TYPE_CHECKING:
    from hf_mabprune.recovery.trainer import DistillationTrainer

WEIGHTS = "weight"  # begins the names of what is trained; the others begin with what the optimizer calls its sums


@dataclass(frozen=True)
class TrainingState:
    """Says how far a training has come.

    Attributes:
        step: Steps behind it.
        seconds: Wall-clock time so far.
        tokens: Positions through a forward pass, and differentiated, over all processes.
        losses: Loss of every part of a step.
        scale: Of losses in float16, and the steps since it grew; nothing where there is none.
        tensors: Name -> what was trained, and the sums of the optimizer where steps are left.
    """

    step: int
    seconds: float
    tokens: list[int]
    losses: list[float]
    scale: list[float] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Keeper(Protocol):
    """Keeps a training, so that a run that was stopped goes on from there. Every process of a launch has one."""

    def read(self) -> TrainingState | None:
        """Gives how far the training came before the run was stopped; None where nothing was kept.

        Raises:
            ValueError: If what was kept is damaged.
        """

    def open(self) -> AbstractContextManager[None]:
        """Lets whatever stops the run wait for the end of a step, in reason, while the context is open."""

    def keep(self, state: Callable[[], TrainingState], ended: bool) -> None:
        """Called after every step: keeps the training when that is due.

        Args:
            state: Says how far it has come; called by every process, or by none.
            ended: Whether no step is left.

        Raises:
            KeyboardInterrupt: In all processes, if the run shall stop, once the training is kept.
        """


class Course:
    """Says where a training is, and where it goes on from.

    Args:
        steps: Optimizer steps in all.
        epochs: Passes over the examples in all.
        kept: Where the training is kept, and taken up from; None keeps nothing.

    Attributes:
        earlier: How far it came before the run was stopped; None where it begins.
        done: Steps that were taken then.
    """

    def __init__(self, steps: int, epochs: float, kept: Keeper | None = None) -> None:
        self.steps, self.epochs, self.kept = steps, epochs, kept
        self.earlier = kept.read() if kept else None
        self.done = self.earlier.step if self.earlier else 0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return time.perf_counter() - self._start + (self.earlier.seconds if self.earlier else 0.0)

    def take_up(self, trainer: "DistillationTrainer") -> None:
        """Gives a trainer weights, counts and losses as they were when the training was kept."""
        if not self.earlier:
            return
        with torch.no_grad():
            for name, parameter in _trained(trainer):
                parameter.copy_(self.earlier.tensors[f"{WEIGHTS} {name}"])
        if trainer.accelerator.is_main_process:
            trainer.tokens += torch.tensor(self.earlier.tokens).to(trainer.tokens)
        trainer.losses += self.earlier.losses
        if (scaler := trainer.accelerator.scaler) and self.earlier.scale:
            scale, steps = self.earlier.scale
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": int(steps)})

    def take_up_optimizer(self, optimizer: Optimizer, trainer: "DistillationTrainer") -> None:
        """Gives a fresh optimizer its sums."""
        if not self.earlier:
            return
        names = {id(parameter): name for name, parameter in _trained(trainer)}
        order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {number: {} for number in range(len(order))}
        number_of = {name: number for number, name in enumerate(order)}
        for key, tensor in self.earlier.tensors.items():
            kind, _, name = key.partition(" ")
            if kind != WEIGHTS:
                state[number_of[name]][kind] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": {n: sums for n, sums in state.items() if sums}, "param_groups": groups})
        self.earlier = replace(self.earlier, tensors={})  # all is taken up, and as large as the optimizer

    def take_up_schedule(self, schedule: LRScheduler) -> None:
        """Moves a fresh schedule to the learning rate of the next step."""
        if self.done:
            state = schedule.state_dict()
            schedule.load_state_dict({**state, "last_epoch": self.done - 1, "_step_count": self.done})
            schedule.step()

    def open(self) -> AbstractContextManager[None]:
        """See `Keeper.open`."""
        return self.kept.open() if self.kept else nullcontext()

    def keep(self, trainer: "DistillationTrainer", step: int) -> None:
        """Called after every step, counted from the first of all: keeps the training when due."""
        if self.kept:
            self.kept.keep(lambda: self._state(trainer, step), ended=step == self.steps)

    def _state(self, trainer: "DistillationTrainer", step: int) -> TrainingState:
        """Says how far a trainer has come. Runs on every process."""
        optimizer, scaler = trainer.optimizer, trainer.accelerator.scaler
        assert optimizer is not None
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in _trained(trainer):
            tensors[f"{WEIGHTS} {name}"] = parameter
            if step < self.steps:
                tensors |= {f"{kind} {name}": value for kind, value in optimizer.state.get(parameter, {}).items()}
        scale = [] if scaler is None else [scaler.get_scale(), float(scaler.state_dict()["_growth_tracker"])]
        tokens = trainer.accelerator.reduce(trainer.tokens).tolist()
        return TrainingState(step, self.seconds, tokens, list(trainer.losses), scale, tensors)


def _trained(trainer: "DistillationTrainer") -> list[tuple[str, torch.nn.Parameter]]:
    """Gives what takes steps, by name."""
    assert trainer.model is not None
    return [(name, parameter) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]


class AfterEachStep(TrainerCallback):
    """Shows steps done, the epoch and the loss of a training, and keeps it.

    Args:
        work: The stage that the training is.
        trainer: What trains.
    """

    def __init__(self, work: Work, trainer: "DistillationTrainer") -> None:
        self.work, self.trainer = work, trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Moves on by a step."""
        course, losses = self.trainer.course, self.trainer.losses
        step = course.done + state.global_step
        note = f"epoch {course.epochs * step / course.steps:.2f}, loss {losses[-1]:.4f}"
        self.work.count(step, course.steps, note=note)
        course.keep(self.trainer, step)
