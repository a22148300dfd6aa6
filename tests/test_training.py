"""Pruning inside a Trainer's run: what stays is trained as if the rest were masked, and a training can be resumed."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_mabprune import PruneCallback
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.surgery.cut import cut
from hf_mabprune.training import KEY, cuts_of
from tests.problems import sentences
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import head_of, outputs_of, tiny_model

ROOT = Path(__file__).parents[1]
QUICKLY = {"criterion": "magnitude"}
HALF = {"neurons": 0.5, "heads": 0.5}
TEXTS = Dataset.from_dict(sentences(32, 0))

pytestmark = pytest.mark.whole


def model_of(model_type: str = "bert", dropout: float = 0.0) -> PreTrainedModel:
    """Without dropout, whose draws are others in smaller layers, unless that is asked for."""
    if model_type != "bert":
        return tiny_model(model_type, head_of(model_type))
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return tiny_model(model_type, "AutoModelForSequenceClassification", **rates)


def trainer_of(
    folder: Path,
    targets: dict[int, Any] | None = None,
    model_type: str = "bert",
    callback: dict[str, Any] | None = None,
    dropout: float = 0.0,
    **arguments: Any,
) -> Trainer:
    """A Trainer of a tiny model, the same one each time, that is cut at the steps of `targets`."""
    classifies = model_type == "bert"
    tokenizer = make_tokenizer("pair" if classifies else "plain")
    rows = TEXTS.map(lambda row: dict(tokenizer(row["sentence"], truncation=True, max_length=8)))
    fixed = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "save_steps": 2}
    fixed |= {"adam_epsilon": 1e-2}  # or gradients of nothing but rounding, as those of keys' biases, move weights
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    trainer = Trainer(
        model_of(model_type, dropout),
        TrainingArguments(str(folder), **{**fixed, **quiet, **arguments}),
        train_dataset=rows if classifies else rows.remove_columns("label"),
        eval_dataset=rows.select(range(8)),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer)
        if classifies
        else DataCollatorForLanguageModeling(tokenizer, mlm=False),
        compute_metrics=lambda _: {"earlier": -float(trainer.state.global_step)},
    )
    if classifies:  # whose loss is a mean, whatever it is told of the number of items of a step
        trainer.model_accepts_loss_kwargs = False
    task = {"batch_size": 8} if classifies else {"columns": {"text": "sentence"}, "max_length": 8, "batch_size": 4}
    if targets:
        data = Dataset.from_dict(sentences(24, 1)), Dataset.from_dict(sentences(24, 2))
        options = {
            "task": task,
            "prune": {"block_size": 4},
            "search": QUICKLY,
            "compensation": None,
            **(callback or {}),
        }
        trainer.add_callback(PruneCallback(trainer, targets, *data, **options))
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> bool:
    alike = [torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one if name in other]
    return one.keys() == other.keys() and all(alike)


class Masked(TrainerCallback):
    """Masks what was cut, from the end of the same step on."""

    def __init__(self, step: int, masks: dict[str, torch.Tensor]) -> None:
        self.step, self.masks, self.stack = step, masks, ExitStack()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == self.step:
            self.stack.enter_context(masked(given["model"], masks=self.masks))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stack.close()


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_cut_model_is_trained_as_the_masked_one_is(model_type: str, tmp_path: Path) -> None:
    options = {"weight_decay": 0.1, "save_strategy": "no"}
    trainer = trainer_of(tmp_path, {3: HALF}, model_type, **options)
    trainer.train()
    made = trainer.state.stateful_callbacks[KEY][0]
    keep = {name: torch.tensor(units).numpy() for name, units in made["keep"].items()}
    other = trainer_of(tmp_path, None, model_type, **options)
    other.add_callback(Masked(3, keep_masks(other.model, keep)))
    other.train()
    expected = cut(other.model, keep, made["layout"]).state_dict()
    assert trainer.model.num_parameters() < model_of(model_type).num_parameters()
    assert same(weights(trainer), expected, 1e-5)
    assert not same(expected, cut(model_of(model_type), keep, made["layout"]).state_dict(), 1e-3), "it was trained"
    ours, theirs = trainer.optimizer.param_groups, other.optimizer.param_groups
    assert [group["lr"] for group in ours] == [group["lr"] for group in theirs] != [1e-2, 1e-2]


def test_a_resumed_training_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    targets = {3: {"neurons": 0.5}, 5: {"heads": 0.5}}
    options = {"callback": {"search": None, "compensation": "least_squares"}, "dropout": 0.1, "max_steps": 7}
    whole = trainer_of(tmp_path, targets, **options)
    whole.train()
    assert [made.step for made in cuts_of(str(tmp_path / "checkpoint-4"))] == [3]
    for step in (2, 4, 6):  # before, between and behind the cuts
        resumed = trainer_of(tmp_path, targets, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(whole))
        assert resumed.state.stateful_callbacks[KEY] == whole.state.stateful_callbacks[KEY]
        ours, theirs = (trainer.optimizer.state_dict()["state"] for trainer in (resumed, whole))
        assert ours.keys() == theirs.keys() and all(same(ours[number], theirs[number]) for number in theirs)


@pytest.mark.parametrize(("layout", "model_type"), [("per_layer", "bert"), ("uniform", "llama")])
def test_a_checkpoint_loads_with_auto_model(layout: str, model_type: str, tmp_path: Path) -> None:
    callback = {"prune": {"layout": layout, "block_size": 4}, "compensation": "least_squares", "search": QUICKLY}
    trainer = trainer_of(tmp_path, {2: {"neurons": 0.5}}, model_type, callback, max_steps=3)
    trainer.train()
    trainer.save_model()
    auto = AutoModelForSequenceClassification if model_type == "bert" else AutoModelForCausalLM
    trainer.model.eval()
    stored = auto.from_pretrained(tmp_path)
    assert type(stored) is type(trainer.model) and (layout == "uniform") == (
        type(stored) is type(model_of(model_type))
    )
    assert torch.equal(outputs_of(stored), outputs_of(trainer.model))


def test_four_batches_that_are_accumulated_are_one_of_four_times_the_size(tmp_path: Path) -> None:
    made = []
    for size, parts in ((8, 1), (2, 4)):
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "save_strategy": "no"}
        made.append(trainer_of(tmp_path, {3: HALF}, **arguments))
        made[-1].train()
    assert same(weights(made[0]), weights(made[1]), 1e-5)
    assert made[0].state.stateful_callbacks[KEY] == made[1].state.stateful_callbacks[KEY]


def test_the_best_checkpoint_is_one_of_the_model_as_it_is_now(tmp_path: Path) -> None:
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "earlier", "greater_is_better": True}
    trainer = trainer_of(tmp_path, {4: HALF}, **best)
    trainer.train()
    assert trainer.state.best_global_step == 4, "the one of step 2 is of another model"
    stored = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert same(weights(trainer), stored.state_dict())


@pytest.mark.parametrize(
    ("targets", "arguments", "fault"),
    [
        ({}, {}, "targets must be steps with targets"),
        ({0: HALF}, {}, "a step must be a whole number from 1 on, got 0"),
        ({3: {"neurons": [0.25, 0.5]}}, {}, "a step cuts to one size, got 2"),
        ({3: {"nurons": 0.5}}, {}, "neurons"),
        ({9: HALF}, {}, "a cut at step 9 never comes: the training ends with step 6"),
        ({3: {"parameters": 0.99}}, {}, "0.99"),
        ({3: HALF}, {"optim": "adafactor"}, "keeps exp_avg_sq_row of shape"),
        ({3: HALF}, {"neftune_noise_alpha": 1.0}, "neftune_noise_alpha, whose hook"),
    ],
)
def test_what_cannot_work_is_said_before_or_after_the_first_step(
    targets: dict[int, Any], arguments: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=fault):
        trainer = trainer_of(tmp_path, None, **arguments)
        data = Dataset.from_dict(sentences(24, 1)), Dataset.from_dict(sentences(24, 2))
        trainer.add_callback(PruneCallback(trainer, targets, *data, search=QUICKLY, compensation=None))
        trainer.train()
    assert trainer.state.global_step <= 1


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {3: HALF})
    trainer.train()
    with pytest.raises(ValueError, match=r"the model was cut at step 3 and .*checkpoint-2 is not of a model cut like"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="the checkpoint is of step 4 and was not cut at step 2"):
        trainer_of(tmp_path, {2: HALF}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    file = tmp_path / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"][KEY][0]["layout"] = "tall"
    file.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"what it says of cuts cannot be read: 0.layout"):
        cuts_of(str(file.parent))


def test_two_processes_train_and_cut_as_one_does(tmp_path: Path) -> None:
    """Starts itself twice, as `accelerate launch` would: each process has half of every batch."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/cpu_2.yaml")]
    command = [sys.executable, *launch, "--main_process_port", "0", "-m", __name__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 3: cut from") == 1 and "2 processes" in done.stdout
    alone = trainer_of(tmp_path / "alone", {3: HALF})
    alone.train()
    together = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-6")
    assert same(weights(alone), together.state_dict(), 1e-5)


if __name__ == "__main__":
    half = trainer_of(Path(sys.argv[1]), {3: HALF}, per_device_train_batch_size=4)
    half.train()
    half.accelerator.print(f"{half.accelerator.num_processes} processes")
