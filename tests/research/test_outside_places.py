"""Places in environments of their own: what can be known of them without one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from jinja2 import Template

from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.places import Subject, subject_of, tried
from hf_mabprune.surgery.cut import cut
from research import gguf
from research.benchmarks.endings import read_questions
from research.places import lm_eval, place_names
from research.places.llama_cpp import SOURCE
from research.places.lm_eval import DATA, FILES, LONGEST, SUFFIX, TASKS, drawn
from tests.problems import selection
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

OUTSIDE = ("llama_cpp", "lm_eval", "vllm")
ROWS = {
    "hellaswag": {"ctx": ["a man", "b" * LONGEST, "c"], "endings": [["x y", "z"]] * 3, "label": [1, 0, 0]},
    "boolq": {"passage": ["p", "q", "r" * LONGEST], "question": ["is it", "so", "no"], "label": [0, 1, 1]},
}


def stored(folder: Path, model_type: str, head: str) -> Subject:
    model = tiny_model(model_type, head)
    tokenizer = make_tokenizer("plain" if model_type != "bert" else "pair")
    save_checkpoint(cut(model, selection(model, "per_layer"), "per_layer"), folder, tokenizer, torch.float32)
    return subject_of(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A pruned decoder, sizes per layer."""
    return stored(tmp_path_factory.mktemp("llama"), "llama", "AutoModelForCausalLM")


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_missing_is_said(name: str, llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name in place_names()
    for variable in (DATA, SOURCE):
        monkeypatch.delenv(variable, raising=False)
    row = tried(name, llama)
    assert row.outcome == "untried" and "pip install" in row.note and f"--python {name}=PATH" in row.note
    assert "DIR" in row.recipe


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_classifier_is_for_none_of_them(name: str, tmp_path: Path) -> None:
    row = tried(name, stored(tmp_path, "bert", "AutoModelForSequenceClassification"))
    assert row.outcome == "cannot" and "decoders" in row.note


@pytest.mark.parametrize("name", FILES)
def test_a_task_file_asks_what_the_benchmark_asks(name: str, tmp_path: Path) -> None:
    task = yaml.safe_load((TASKS / f"{name}{SUFFIX}.yaml").read_text())
    source, file = tmp_path / "source.parquet", tmp_path / f"{name}.parquet"
    pd.DataFrame(ROWS[name]).to_parquet(source)
    questions = drawn(source, file)
    assert task["task"] == f"{name}{SUFFIX}" and task["dataset_kwargs"]["data_files"] == {"test": file.name}
    rows = pd.read_parquet(file).to_dict("records")
    assert len(rows) == len(questions) == 2  # the long one is left out of both
    for row, question in zip(rows, questions, strict=True):
        said, choices = task["doc_to_text"], task["doc_to_choice"]
        assert (row[said] if said in row else Template(said).render(row)) == question.context
        # the harness puts a space before every choice
        assert [f" {choice}" for choice in (row[choices] if isinstance(choices, str) else choices)] == question.endings
        assert row[task["doc_to_target"]] == question.right


def test_likelihoods_are_compared_per_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Subject) -> None:
    source = tmp_path / "source.parquet"
    pd.DataFrame({"ctx": ["a b", "c"], "endings": [["d e", "f"]] * 2, "label": [0, 1]}).to_parquet(source)
    quizzes = {"hellaswag": read_questions(str(source), 2, 0)}
    losses = lm_eval.own_losses(str(llama.folder), quizzes)
    tokenizer = make_tokenizer("plain")
    logged = [[-2 * first, -second] for first, second in losses["hellaswag"]]
    assert lm_eval._apart({"hellaswag": logged}, losses, quizzes, tokenizer) == pytest.approx(0, abs=1e-12)
    logged[1][0] -= 0.5
    assert lm_eval._apart({"hellaswag": logged}, losses, quizzes, tokenizer) == pytest.approx(0.25)


def config_of(subject: Subject) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((subject.folder / "config.json").read_text())
    return found


def test_sizes_of_layers_are_those_of_the_weights(llama: Subject) -> None:
    from hf_mabprune import load_pruned

    layers = load_pruned(llama.folder).model.layers
    sizes = gguf.sizes_of(config_of(llama))
    assert [own["intermediate_size"] for own in sizes] == [layer.mlp.down_proj.in_features for layer in layers]
    size = layers[0].self_attn.head_dim
    assert [own["num_attention_heads"] * size for own in sizes] == [
        layer.self_attn.q_proj.out_features for layer in layers
    ]
    assert [own["num_key_value_heads"] * size for own in sizes] == [
        layer.self_attn.k_proj.out_features for layer in layers
    ]
    assert len({own["intermediate_size"] for own in sizes}) > 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "mabprune_gemma3_text"}, "those of a Llama alone, got 'mabprune_gemma3_text'"),
        ({"mabprune": {"format": 3, "empty": {"layers.0.mlp": 1}}}, "a layer without an FFN"),
        ({"hidden_act": "gelu"}, "no activation but silu, got 'gelu'"),
    ],
)
def test_what_llama_cpp_cannot_say_is_refused(change: dict[str, Any], why: str, llama: Subject) -> None:
    with pytest.raises(ValueError, match=why):
        gguf.sizes_of({**config_of(llama), **change})


class Reader:
    """What the reader of per-layer sizes is made from, as far as it is asked."""

    def __init__(self) -> None:
        self.hparams = {"head_dim": None, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
        self.gguf_writer = self
        self.written: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.written.__setitem__(name, value)

    def set_gguf_parameters(self) -> None:
        self.written["began"] = True

    def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterator[Any]:
        yield name, self.hparams["num_attention_heads"], self.hparams["num_key_value_heads"]


def test_a_layer_is_read_with_its_own_heads() -> None:
    sizes = [(8, 2, 1), (24, 4, 2)]
    layers = [dict(zip(gguf.FIELDS, each, strict=True)) for each in sizes]
    reader = gguf._per_layer(Reader, layers, "deci")()
    reader.set_gguf_parameters()
    assert reader.written == {
        "began": True,
        "add_feed_forward_length": [8, 24],
        "add_head_count": [2, 4],
        "add_head_count_kv": [1, 2],
        "add_key_length": 8,
        "add_value_length": 8,
    }
    given = [next(iter(reader.modify_tensors(None, "q", bid))) for bid in (0, 1, None)]
    assert given == [("q", 2, 1), ("q", 4, 2), ("q", 4, 2)] and reader.model_arch == "deci"
