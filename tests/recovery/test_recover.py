"""Recovery on tiny models: what it minimises, what it leaves behind, and that it can be undone."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.config import RecoveryConfig
from hf_mabprune.recovery import memory, trainer
from hf_mabprune.recovery import recover as recovery
from hf_mabprune.recovery.losses import hidden_distance
from hf_mabprune.recovery.recover import check_losses, recover
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.sampling import batches_of
from tests.recovery.case import SETTINGS, Case, same
from tests.tasks.tiny_tasks import CASES, task_of
from tests.tiny_models import keep_for

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("model_type", "layout", "changes"),
    [
        ("bert", "per_layer", {}),
        ("llama", "per_layer", {"tie_word_embeddings": True}),
        ("llama", "uniform", {}),
    ],
)
def test_distillation_brings_the_outputs_back_to_the_dense_models(
    model_type: str, layout: str, changes: dict[str, Any]
) -> None:
    case = Case(model_type, layout, **changes)
    dense = {name: weight.clone() for name, weight in case.dense.state_dict().items()}
    config, kind, before = case.small.config.to_dict(), type(case.small), case.measure()
    figures = case.recover(alpha=1.0, epochs=8)
    after = case.measure()

    assert after.kl.mean() < 0.5 * before.kl.mean()
    assert figures.steps == round(8 * len(case.examples) / 8) and figures.examples == len(case.examples)
    assert figures.forward_tokens == 2 * figures.backward_tokens > 0
    assert (type(case.small), case.small.training) == (kind, False) and case.small.config.to_dict() == config
    assert all(parameter.requires_grad and parameter.grad is None for parameter in case.small.parameters())
    assert same(case.dense.state_dict(), dense)
    tied = case.small.get_input_embeddings().weight is getattr(case.small.get_output_embeddings(), "weight", None)
    assert tied == bool(changes)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_task_can_be_recovered(name: str) -> None:
    case = Case()
    case.task, case.dense, data = CASES[name].build()
    case.examples = case.task.encode(data)
    case.small = cut(case.dense, keep_for(case.dense, "per_layer"), "per_layer")
    before = case.measure().loss
    case.recover(batch_size=5, epochs=15, alpha=0.0 if case.task.has_loss else 1.0, learning_rate=1e-2)
    assert case.measure().loss < before
    states = 0.0 if name.startswith("tabular") else 1.0  # models of tables give none
    figures = case.recover(batch_size=2, max_steps=2, alpha=1.0, hidden_weight=states)
    assert figures.loss > 0 and figures.forward_tokens == 2 * figures.backward_tokens


def test_states_that_a_model_does_not_give_are_refused_before_anything_is_trained() -> None:
    task, model, _ = CASES["tabular_classification"].build()
    settings = RecoveryConfig(hidden_weight=1.0)
    with pytest.raises(ValueError, match="hidden_weight compares hidden states, which TinyForClassification"):
        check_losses(settings, task, model)
    case = Case()
    check_losses(settings, case.task, case.dense)


def test_labels_alone_need_no_dense_model() -> None:
    case = Case()
    before = case.measure().loss
    figures = case.recover(alpha=0.0)
    assert figures.forward_tokens == figures.backward_tokens
    assert case.measure().loss < before


def test_hidden_states_come_back_too() -> None:
    found = {}
    for weight in (0.0, 10.0):
        case = Case()
        case.recover(alpha=1.0, hidden_weight=weight)
        batch = batches_of(case.task, case.examples, 48)[0]
        with torch.no_grad():
            states = [
                model(**case.task.inputs(batch), output_hidden_states=True).hidden_states[1:]
                for model in (case.small, case.dense)
            ]
        found[weight] = float(hidden_distance(*states, batch["attention_mask"]))
    assert found[10.0] < 0.7 * found[0.0]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_copy_has_nothing_to_learn_since_dropout_is_off(method: str) -> None:
    case = Case(hidden_dropout_prob=0.5)
    case.small = copy.deepcopy(case.dense)
    assert case.recover(method=method, alpha=1.0, max_steps=1).loss < 1e-6


def test_low_rank_updates_read_no_labels() -> None:
    found = []
    for changed in (False, True):
        case = Case()
        if changed:
            labels = [1 - label for label in case.examples["labels"]]
            case.examples = case.examples.remove_columns("labels").add_column("labels", labels)
        case.recover(RecoveryConfig(method="lora", max_steps=3))
        found.append(case.weights())
    assert same(*found)


def test_a_step_in_parts_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for numbers in (2**22, 1):
        monkeypatch.setitem(memory.NUMBERS, "cpu", numbers)
        case = Case("llama")
        figures = case.recover(max_steps=3)
        found.append(case.weights())
        assert figures.steps == 3
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_seed_repeats_the_weights() -> None:
    found = []
    for seed in (0, 0, 1):
        case = Case()
        case.recover(seed=seed, epochs=1)
        found.append(case.weights())
    assert same(found[0], found[1]) and not same(found[0], found[2])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_activation_checkpointing_gives_the_same_weights(method: str) -> None:
    found = []
    for enabled in (False, True):
        case = Case("llama", attention_dropout=0.1)
        if enabled:
            case.small.gradient_checkpointing_enable()
        case.recover(method=method, epochs=1, hidden_weight=1.0)
        found.append(case.weights())
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], msg=name)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_precision_and_flags_are_as_they_were(method: str) -> None:
    case = Case()
    case.small.to(torch.bfloat16)
    case.small.classifier.weight.requires_grad_(False)
    before = case.weights()
    case.recover(method=method)
    changed = [name for name, weight in case.weights().items() if not torch.equal(weight, before[name])]
    assert changed and {parameter.dtype for parameter in case.small.parameters()} == {torch.bfloat16}
    assert [name for name, p in case.small.named_parameters() if not p.requires_grad] == ["classifier.weight"]


def test_low_rank_updates_are_merged_into_a_plain_checkpoint(tmp_path: Path) -> None:
    case = Case("llama", tie_word_embeddings=True)
    before, kl = case.weights(), case.measure().kl.mean()
    figures = case.recover(method="lora", alpha=1.0, learning_rate=1e-2, epochs=4)
    after = case.weights()

    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert figures.method == "lora" and case.measure().kl.mean() < 0.7 * kl
    assert after.keys() == before.keys()
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert changed == projections | {"input_layernorm", "post_attention_layernorm", "norm"}
    save_checkpoint(case.small, tmp_path, None, torch.float32)
    again = load_pruned(tmp_path).eval()
    assert type(again) is type(case.small)
    ids = torch.tensor([[6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, case.small(input_ids=ids).logits)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_loss_that_is_not_finite_is_an_error_that_leaves_the_weights_alone(method: str) -> None:
    case = Case()
    case.small.classifier.weight.requires_grad_(False)
    before, parameters = case.weights(), list(case.small.parameters())
    with pytest.raises(ValueError, match=r"the loss is not finite at step \d+, so the pruned model keeps the weights"):
        case.recover(method=method, learning_rate=1e30, warmup_ratio=0.0)
    assert same(case.weights(), before)
    assert all(now is then for now, then in zip(case.small.parameters(), parameters, strict=True))
    assert not case.small.training and not case.small.classifier.weight.requires_grad
    case.recover(method=method, epochs=1)
    assert not same(case.weights(), before), "and it can be tried again"


def test_a_last_step_that_breaks_the_weights_is_noticed() -> None:
    case = Case()
    before = case.weights()
    with pytest.raises(ValueError, match="not finite at step 1"):
        case.recover(learning_rate=1e39, weight_decay=1e3, warmup_ratio=0.0, max_steps=1)
    assert same(case.weights(), before)


def test_any_other_error_leaves_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case, calls = Case(), []
    before, read = case.weights(), case.task.read

    def interrupted(logits: torch.Tensor, batch: Any) -> Readout:
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return read(logits, batch)

    monkeypatch.setattr(case.task, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        case.recover()
    assert same(case.weights(), before)


def test_nothing_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    case.recover(epochs=1)
    assert not list(tmp_path.iterdir())


def test_what_cannot_work_is_refused() -> None:
    case = Case()
    with pytest.raises(ValueError, match="must be a multiple of the 3 processes that share a step, got 32"):
        recovery.check_recovery(RecoveryConfig(), 3)
    with pytest.raises(ValueError, match="takes at least one example, got none"):
        recover(case.small, case.dense, case.task, case.examples.select([]), SETTINGS, Accelerator(cpu=True))


def test_the_quickstart_model_gets_its_accuracy_back() -> None:
    folder = ROOT / "examples/quickstart"
    dense = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    case = Case()
    case.dense, case.task = dense, task_of(dense, AutoTokenizer.from_pretrained(folder / "model"))
    case.small = cut(dense, keep_for(dense, "uniform", seed=3), "per_layer")  # half of every layer
    data = {split: Dataset.from_parquet(str(folder / f"data/{split}.parquet")) for split in ("train", "test")}
    train = case.task.encode(data["train"].select(range(640)))
    case.examples = case.task.encode(data["test"].select(range(256)))
    before = case.measure()
    case.examples, test = train, case.examples
    case.recover(RecoveryConfig())
    case.examples = test
    after = case.measure()
    assert after.metrics["accuracy"] > before.metrics["accuracy"] + 0.02
    assert after.kl.mean() < 0.6 * before.kl.mean()


ON_TWO = """
import hashlib, json, sys
import torch
from accelerate import Accelerator
from tests.recovery.case import Case

accelerator = Accelerator(cpu=True)
case = Case()
found = {"processes": accelerator.num_processes, "figures": vars(case.recover(hidden_weight=1.0))}
weights = b"".join(parameter.detach().numpy().tobytes() for parameter in case.small.parameters())
found["weights"] = hashlib.sha256(weights).hexdigest()
before = case.weights()
if accelerator.process_index == 1:
    with torch.no_grad():
        case.dense.bert.embeddings.word_embeddings.weight[7] = float("nan")
try:
    case.recover()
except ValueError as error:
    found["error"] = str(error)
found["restored"] = all(torch.equal(before[name], weight) for name, weight in case.weights().items())
open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_the_same_error(tmp_path: Path) -> None:
    script = tmp_path / "on_two.py"
    script.write_text(ON_TWO)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "configs/accelerate/cpu_2.yaml"), "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    assert first["processes"] == 2 and first["restored"] and second["restored"]
    assert first["weights"] == second["weights"]
    assert first["error"] == second["error"] and "not finite at step 1" in first["error"]
    alone = Case()
    figures = alone.recover(hidden_weight=1.0)
    assert (first["figures"]["steps"], first["figures"]["examples"]) == (figures.steps, figures.examples)
    assert first["figures"]["loss"] == pytest.approx(figures.loss, rel=0.1), "the same batches; dropout differs"


def test_a_bfloat16_model_is_trained_in_mixed_precision_and_measured_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("llama")
    case.dense, case.small = case.dense.bfloat16(), case.small.bfloat16()
    products, losses = set(), set()
    for layer in case.small.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda *given: products.add(given[-1].dtype))
    plain = trainer.distillation_loss

    def watched(student: Readout, *given: Any) -> torch.Tensor:
        losses.add((plain(student, *given).dtype, torch.is_autocast_enabled("cpu")))
        return plain(student, *given)

    monkeypatch.setattr(trainer, "distillation_loss", watched)
    before = case.measure()
    case.recover(method="lora", alpha=1.0, epochs=8, learning_rate=3e-3)

    assert products == {torch.bfloat16} and case.small.dtype == torch.bfloat16
    assert not any(autocast or loss in (torch.bfloat16, torch.float16) for loss, autocast in losses)
    assert case.measure().kl.mean() < 0.7 * before.kl.mean()


def test_positions_count_as_far_as_the_head_costs_no_more_than_the_layers() -> None:
    small, large = (Case("llama", vocab_size=size).dense for size in (100, 4000))
    some = trainer.positions_that_count(RecoveryConfig(), large)

    assert trainer.positions_that_count(RecoveryConfig(), small) == 1.0
    assert 0 < some < 1
    assert trainer.positions_that_count(RecoveryConfig(positions=0.5), large) == 0.5
