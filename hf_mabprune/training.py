"""Pruning inside a Trainer's run: a callback searches and cuts at the end of stated optimizer steps.

The model stays the same object. What the optimizer holds of its parameters is cut as they are, the schedule of the
learning rate goes on, and a checkpoint from after a cut says what was cut: a Trainer that resumes from it makes the
same cuts before it loads the weights.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from hf_mabprune import config
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checks import check_choice
from hf_mabprune.config import PruneConfig
from hf_mabprune.data.columns import with_fields
from hf_mabprune.data.given import Given, given_splits
from hf_mabprune.evaluation.choice import select
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.runtime.caller import undisturbed
from hf_mabprune.runtime.wrappers import FORWARDS, left_as_it_was, unwrap
from hf_mabprune.search.run import search
from hf_mabprune.session import Session, make_session
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.in_training import (
    check_states,
    cut_optimizer,
    give_biases,
    new_biases,
    take_over,
    wrap_again,
)

KEY = "hf_mabprune cuts"  # in `stateful_callbacks` of a Trainer's state


class TrainingCut(BaseModel):
    """What was cut in a training: enough to make the same cut again.

    Attributes:
        step: Optimizer step at whose end it was made.
        parameters: Number of parameters of the model before it.
        layout: Layout of the model after it.
        keep: Name of a site -> its units that stay.
        biases: Sites whose output projections got a bias by the refit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    step: int = Field(ge=1)
    parameters: int = Field(ge=1)
    layout: Literal["uniform", "per_layer"]
    keep: dict[str, list[int]]
    biases: list[str]

    def made_again(self, model: PreTrainedModel) -> tuple[PreTrainedModel, KeepIndices]:
        """Cuts a model as it was cut before; its weights are not those from after the training, and need not be.

        Raises:
            ValueError: If it is another model.
        """
        if (count := model.num_parameters()) != self.parameters:
            raise ValueError(
                f"the checkpoint was cut at step {self.step} from a model of {self.parameters:,} parameters, the "
                f"Trainer's has {count:,}: give the Trainer the model that its training began with"
            )
        keep = {name: np.array(units, dtype=np.int64) for name, units in self.keep.items()}
        small = cut(model, keep, self.layout)
        give_biases(small, self.biases)
        return small, keep


class PruneCallback(TrainerCallback):
    """Searches and cuts inside an ordinary Trainer's run.

        trainer = Trainer(model, args, train_dataset=..., processing_class=tokenizer)
        trainer.add_callback(PruneCallback(trainer, {100: {"parameters": 0.3}}, calibration, validation))
        trainer.train()  # or trainer.train(resume_from_checkpoint=True)

    A cut comes at the end of an optimizer step, before that step's evaluation and checkpoint; gradients that are
    accumulated are never cut. The state of random generators is as if there had been no search. Of checkpoints, the
    best is that of those from after the last cut, also where `load_best_model_at_end` loads it: earlier ones are of
    another model. Every process of a launch searches along, and all cut alike.

    Args:
        trainer: Trainer that the callback is added to.
        targets: Optimizer step -> what goes at its end, of the model as it is then: a target as `prune` takes it, of
            one size, e.g. `{100: {"parameters": 0.3}}`.
        calibration, validation: Data sets in the columns of the task (not as the Trainer takes them, tokenised), that
            share no examples; rewards see calibration, the choice of the layout validation.
        task, prune, search, compensation, seed: As those of `hf_mabprune.prune`. With compensation None, weights that
            stay are as they were.

    Raises:
        ValueError: For a setting, a model or a Trainer that cannot work.
    """

    def __init__(
        self,
        trainer: Trainer,
        targets: Mapping[int, dict[str, Any]],
        calibration: Given,
        validation: Given,
        *,
        task: dict[str, Any] | None = None,
        prune: dict[str, Any] | None = None,
        search: dict[str, Any] | None = None,
        compensation: str | dict[str, Any] | None = "least_squares",
        seed: int = 0,
    ) -> None:
        self.trainer = _checked(trainer)
        model = unwrap(self.trainer.model)
        shared = {
            "model": {"name": model.config.name_or_path or type(model).__name__},
            "task": {"dataset": {"path": "in-memory"}, **(task or {})},
            "search": search or {},
            "compensation": compensation,
            "output": {"dir": trainer.args.output_dir},
            "seed": seed,
        }
        self.settings = {
            step: _of_one_size({**shared, "prune": {**(prune or {}), "target": target}})
            for step, target in _steps(targets).items()
        }
        splits = given_splits(calibration=calibration, validation=validation)
        columns = next(iter(self.settings.values())).task.columns.values()
        self.splits = {purpose: with_fields(data, columns) for purpose, data in splits.items()}
        self.made: list[TrainingCut] = []  # all cuts of the model in memory
        self._load = self.trainer._load_from_checkpoint
        self.trainer._load_from_checkpoint = self._cut_and_load

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refuses steps and targets that cannot be, before the first step.

        Raises:
            ValueError: With the rule, the value and the remedy.
        """
        done = {made.step for made in self.made}
        for step in self.settings:
            if step > state.max_steps:
                raise ValueError(f"a cut at step {step} never comes: the training ends with step {state.max_steps}")
            if step <= state.global_step and step not in done:
                raise ValueError(
                    f"the checkpoint is of step {state.global_step} and was not cut at step {step}: resume from an "
                    "earlier one, or name a later step"
                )
        self._note(state)
        if left := [step for step in self.settings if step > state.global_step]:
            self._look(self.settings[left[0]])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Cuts, where this is the step to.

        Raises:
            ValueError: If the target is out of reach, or the optimizer keeps what cannot be cut.
        """
        if any(step >= state.global_step for step in self.settings):
            check_states(self.trainer.optimizer)
        if settings := self.settings.get(state.global_step):
            self._prune(settings, state.global_step)
            self._note(state)
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    @undisturbed()
    def _look(self, settings: PruneConfig) -> None:
        """Refuses data and a target that do not suit the model; nothing is changed."""
        with left_as_it_was(plain := unwrap(self.trainer.model)):
            session = self._session(plain, settings)
            session.plans(settings.prune.sizes()[0])

    @undisturbed()
    def _prune(self, settings: PruneConfig, step: int) -> None:
        """Searches, cuts and refits."""
        plain = unwrap(self.trainer.model)
        with left_as_it_was(plain):
            session = self._session(plain, settings)
            size = settings.prune.sizes()[0]
            found, _ = search(session, [session.plans(size).search])
            selection = select(Comparison(session), found, size)
            keep = session.arms.kept_units(selection.kept)
            small = cut(plain, keep, selection.plan.layout)
            session.refit(small, keep)
        made = TrainingCut(
            step=step,
            parameters=plain.num_parameters(),
            layout=selection.plan.layout,
            keep={name: units.tolist() for name, units in keep.items()},
            biases=new_biases(plain, small, keep),
        )
        self._put(plain, small, keep, made)
        count = small.num_parameters()
        session.accelerator.print(f"step {step}: cut from {made.parameters:,} to {count:,} parameters, {made.layout}")

    def _session(self, plain: PreTrainedModel, settings: PruneConfig) -> Session:
        data = self.trainer.processing_class, self.splits
        return make_session(settings, plain, *data, self.trainer.accelerator, plain.dtype)

    def _put(self, plain: PreTrainedModel, small: PreTrainedModel, keep: KeepIndices, made: TrainingCut) -> None:
        """Puts a cut model into the place of the Trainer's, for all that hold on to it."""
        trainer = self.trainer
        small.train(plain.training)
        if trainer.optimizer is not None:
            cut_optimizer(trainer.optimizer, plain, small, keep)
        take_over(trainer.model, small, FORWARDS)
        if isinstance(trainer.model_wrapped, DistributedDataParallel):
            wrap_again(trainer.model_wrapped)
        self.made.append(made)

    def _note(self, state: Any) -> None:
        """Puts the cuts where checkpoints have them from."""
        state.stateful_callbacks[KEY] = [made.model_dump() for made in self.made]

    def _cut_and_load(self, checkpoint: str, model: nn.Module | None = None) -> None:
        """Makes the cuts of a checkpoint before its weights are loaded, in the place of the Trainer's own loading."""
        cuts = cuts_of(checkpoint)
        if cuts[: len(self.made)] != self.made:
            raise ValueError(
                f"the model was cut at step {self.made[-1].step} and {checkpoint} is not of a model cut like that: "
                "give the Trainer the model that its training began with"
            )
        for made in cuts[len(self.made) :]:
            plain = unwrap(self.trainer.model)
            self._put(plain, *made.made_again(plain), made)
        self._load(checkpoint, model)


def cuts_of(checkpoint: str) -> list[TrainingCut]:
    """Reads what was cut before a Trainer's checkpoint was saved.

    Args:
        checkpoint: Folder of the checkpoint.

    Raises:
        ValueError: If it says so in another way than this class.
    """
    file = os.path.join(checkpoint, TRAINER_STATE_NAME)
    if not os.path.isfile(file):
        return []  # the Trainer says what is missing
    state: Any = TrainerState.load_from_json(file)
    try:
        return TypeAdapter(list[TrainingCut]).validate_python(state.stateful_callbacks.get(KEY, []))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{file}: what it says of cuts cannot be read: {where}: {fault['msg']}") from None


def _steps(targets: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Gives the targets in the order of their steps; raises ValueError for anything else."""
    if not isinstance(targets, Mapping) or not targets:
        raise ValueError(f"targets must be steps with targets, e.g. {{100: {{'parameters': 0.3}}}}, got {targets!r}")
    for step in targets:
        if type(step) is not int or step < 1:
            raise ValueError(f"targets: a step must be a whole number from 1 on, got {step!r}")
    return dict(sorted(targets.items()))


def _of_one_size(settings: dict[str, Any]) -> PruneConfig:
    """Checks the settings of one cut; raises ValueError for any that cannot work."""
    checked = config.check(settings)
    check_choice(checked)
    if len(sizes := checked.prune.sizes()) > 1:
        raise ValueError(f"a step cuts to one size, got {len(sizes)}: give each fraction a step of its own")
    for name in ("vocabulary", "promise"):
        if getattr(checked.prune, name):
            raise ValueError(f"prune.{name} is for a run of its own, not for a training: leave it out")
    return checked


def _checked(trainer: Any) -> Any:
    """Gives a Trainer itself; raises ValueError where a model cannot be cut in it."""
    if not isinstance(trainer, Trainer):
        raise ValueError(f"trainer must be a Trainer of transformers, got {type(trainer).__name__}")
    args = trainer.args
    faults = {
        "model_init, which makes the model anew: give it a model": trainer.model_init,
        "weights spread over processes (FSDP, DeepSpeed), which cannot be cut in place: prune before or after": (
            trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        ),
        "several GPUs in one process: start a process for each, with accelerate launch": args.n_gpu > 1,
        "torch_compile, which would keep on to what was cut: leave it out": args.torch_compile,
        "neftune_noise_alpha, whose hook holds on to what is cut: leave it out": args.neftune_noise_alpha,
    }
    for fault, there in faults.items():
        if there:
            raise ValueError(f"PruneCallback does not go with {fault}")
    return trainer
