"""Fine-tuned models: a new head, trained, saved as a plain checkpoint, measured as it was saved."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertModel,
    LlamaForCausalLM,
    PreTrainedModel,
)

from hf_mabprune.artifacts.stored import evaluate_checkpoint
from hf_mabprune.config import EvaluateConfig, PruneConfig, check
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.sequence_classification import SequenceClassification
from research.benchmarks.finetuning import Training, finetune
from tests.seeds import moved
from tests.tasks.tiny_tasks import bert_config, llama_config, make_tokenizer
from tests.watched import Watched

CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs/benchmark/tasks").glob("*.yaml"))
LETTERS = "abcdefgh"
QUICK = Training(epochs=6, learning_rate=5e-3, batch_size=16)


def words(row: int) -> str:
    return " ".join(LETTERS[(row * step) % 8] for step in (1, 3, 5))


ROWS: dict[str, dict[str, Any]] = {
    "sequence_classification": {"text": words, "label": lambda row: "odd" if row % 2 else "even"},
    "regression": {"text": words, "score": lambda row: float(row % 8)},
    "multiple_choice": {
        "question": words,
        "choices": lambda row: ["i", "j"] if row % 2 else ["j", "i"],
        "label": lambda row: row % 2,
    },
    "multi_label_classification": {"text": words, "labels": lambda row: [row % 2, 1]},
    "token_classification": {"tokens": lambda row: words(row).split(), "tags": lambda row: [row % 2, 0, 1]},
    "question_answering": {
        "question": lambda row: "i",
        "context": lambda row: f"{words(row)} i j",
        "answers": lambda row: {"text": ["i"], "answer_start": [6]},
    },
    "masked_lm": {"text": lambda row: "a b c a b c"},
    "causal_lm": {"text": lambda row: words(row) + "\n"},
    "answer": {"question": words, "answer": words},
}
HEADS = {
    "sequence_classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "multi_label_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "masked_lm": AutoModelForMaskedLM,
    "multiple_choice": AutoModelForMultipleChoice,
    "causal_lm": LlamaForCausalLM,
    "answer": LlamaForCausalLM,
}


def base_model(folder: Path, task: str) -> str:
    """A model without a head for the task (decoders keep theirs), with its tokenizer."""
    torch.manual_seed(moved(0))
    decoder = HEADS[task] is LlamaForCausalLM
    model: PreTrainedModel = LlamaForCausalLM(llama_config()) if decoder else BertModel(bert_config())
    model.save_pretrained(folder)
    make_tokenizer("plain" if decoder else "pair").save_pretrained(folder)
    return str(folder)


def settings_for(folder: Path, task: str, **changes: Any) -> PruneConfig:
    files = {}
    for number, (split, count) in enumerate((("train", 96), ("validation", 32), ("test", 32))):
        columns = {name: [make(row + 7 * number) for row in range(count)] for name, make in ROWS[task].items()}
        files[split] = str(folder / f"{split}.parquet")
        Dataset.from_dict(columns).to_parquet(files[split])
    length = {"max_length": 12} if task == "causal_lm" else {}
    section = {
        "type": task,
        "dataset": {"path": "parquet", "data_files": files},
        "batch_size": 16,
        **length,
        **changes,
    }
    return check(
        {
            "model": {"name": "unused"},
            "task": section,
            "prune": {"target": {"neurons": 0.5}},
            "output": {"dir": "unused"},
        }
    )


@pytest.mark.whole
@pytest.mark.parametrize("task", sorted(ROWS))
def test_a_model_is_trained_saved_and_measured(task: str, tmp_path: Path) -> None:
    base, settings = base_model(tmp_path / "base", task), settings_for(tmp_path, task)
    untrained = finetune(base, tmp_path / "before", settings, Training(learning_rate=0.0, epochs=1))
    training = Training(epochs=6, learning_rate=5e-3, batch_size=16, save_dtype="float16")
    tuned = finetune(base, tmp_path / "tuned", settings, training)
    assert tuned.quality["test"].loss < 0.9 * untrained.quality["test"].loss
    assert {tensor.dtype for tensor in load_file(tmp_path / "tuned" / "model.safetensors").values()} == {torch.float16}

    model = HEADS[task].from_pretrained(tmp_path / "tuned", dtype=torch.float32)
    for kind in ("regression", "multi_label_classification"):
        assert (model.config.problem_type == kind) == (task == kind)
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned")("a b")["input_ids"]
    section = settings.task.model_dump()
    again = EvaluateConfig.model_validate({"model": {"name": str(tmp_path / "tuned")}, "task": section})
    _, figures = evaluate_checkpoint(again)
    assert figures.loss == pytest.approx(tuned.quality["test"].loss, rel=1e-6)
    assert f"test: {next(iter(figures.metrics))} " in str(tuned)


@pytest.mark.whole
def test_the_head_has_the_classes_of_the_data_and_training_shows_its_steps(tmp_path: Path, shown: Watched) -> None:
    settings = settings_for(tmp_path, "sequence_classification")
    tuned = finetune(base_model(tmp_path / "base", "regression"), tmp_path / "out", settings, QUICK)
    assert tuned.task.model_config.label2id == {"even": 0, "odd": 1}
    assert tuned.examples == 96
    trained = shown.last("fine-tuning")
    assert trained.done == trained.total == 6 * 6 and re.match(r"epoch 6.00, loss \d", trained.note)
    assert {"reading data", "loading model", "evaluation", "forward passes", "saving"} <= set(shown.names())


@pytest.mark.parametrize(
    ("labels", "feature", "fields"),
    [
        ([0, 2, 1], Value("int64"), {"num_labels": 3}),
        ([True, False, True], Value("bool"), {"num_labels": 2}),
        (["b", "a", "b"], Value("string"), {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}),
        ([0, 0, 1], ClassLabel(names=["x", "y"]), {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}),
    ],
)
def test_a_new_head_has_a_class_for_each_label(labels: list[Any], feature: Any, fields: dict[str, Any]) -> None:
    features = Features({"text": Value("string"), "label": feature})
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": labels}, features=features)
    assert SequenceClassification.new_head(dataset, {}) == fields


@pytest.mark.whole
def test_fewer_examples_can_be_asked_for(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "multiple_choice")
    training = Training(epochs=1, max_train_examples=20)
    tuned = finetune(base_model(tmp_path / "base", "multiple_choice"), tmp_path / "out", settings, training)
    assert tuned.examples == 20
    assert len(tuned.quality["validation"].scores.losses) == 32


def test_what_cannot_be_trained_is_refused_before_it_starts(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "regression")
    with pytest.raises(FileExistsError, match="base exists"):
        finetune(base, tmp_path / "base", settings_for(tmp_path, "regression"), QUICK)
    with pytest.raises(ValueError, match=r"task\.type must be set, for a base model has no head yet: answer, "):
        finetune(base, tmp_path / "out", settings_for(tmp_path, "regression", type=None), QUICK)
    with pytest.raises(ValueError, match=r"no column 'label' or 'labels' \(role label\)"):
        settings = settings_for(tmp_path, "regression", type="sequence_classification")
        finetune(base, tmp_path / "out", settings, QUICK)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_of_the_benchmark_are_valid(path: Path) -> None:
    settings = PruneConfig.from_yaml(path)
    assert settings.task.type is not None
    kind = TASKS.get(settings.task.type)
    assert set(settings.task.columns) <= set(kind.roles)
    assert "/" in settings.task.dataset.path and settings.task.dataset.data_files is None
    assert settings.output.dir == f"runs/benchmark/{path.stem}"
    assert "/" not in yaml.safe_load(path.read_text())["task"].get("splits", {}).get("test", "")


def test_there_is_a_config_for_every_task_of_the_benchmark() -> None:
    assert {path.stem for path in CONFIGS} == {
        *("sst2", "agnews", "cola", "sick", "sick_relatedness", "boolq", "openbookqa", "hellaswag"),
        *("wikitext2", "gsm8k"),
    }
