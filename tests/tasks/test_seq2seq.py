"""Encoder-decoders: the shift to the right, exact match against generation, columns and prefixes."""

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel

from hf_mabprune.evaluation.quality import evaluate, forward_of
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.lookup import task_for_model
from hf_mabprune.tasks.sampling import batches_of, split_by_length
from tests.seeds import moved
from tests.tasks.tiny_tasks import bert, make_tokenizer, t5, task_of

ROWS = {"source": ["a b", "c d e f", "g"], "target": ["b a", "g", "h i j a b"]}
END = 5


def bart(**options: Any) -> BartForConditionalGeneration:
    """Random, in eval mode; its decoder begins with the end token."""
    torch.manual_seed(moved(0))
    sides = {f"{side}_{size}": 2 for side in ("encoder", "decoder") for size in ("layers", "attention_heads")}
    sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32, **sides}
    tokens = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 4, "eos_token_id": END}
    config = BartConfig(decoder_start_token_id=END, **sizes, **tokens, **options)
    return BartForConditionalGeneration(config).eval()


def seq2seq(model: PreTrainedModel | None = None, **settings: Any) -> Task:
    return task_of(model or t5(), make_tokenizer("end"), **settings)


def test_the_decoder_reads_the_labels_one_place_to_the_right() -> None:
    task = seq2seq()
    (batch,) = batches_of(task, task.encode(Dataset.from_dict(ROWS)), 8)
    assert batch["input_ids"].tolist() == [[6, 7, END, 0, 0], [8, 9, 10, 11, END], [12, END, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5, 2]
    assert batch["labels"][0].tolist() == [7, 6, END, -100, -100, -100]
    assert batch["decoder_input_ids"][0].tolist() == [0, 7, 6, END, 0, 0]
    assert batch["decoder_attention_mask"].sum(1).tolist() == [3, 2, 6]
    assert batch.tokens == 15 + 18 and batch.length == 5
    assert split_by_length(batch) == [batch]


@pytest.mark.parametrize("make", [t5, bart])
def test_logits_and_loss_are_those_the_model_makes_of_the_labels(make: Any) -> None:
    model = make()
    task = seq2seq(model)
    (batch,) = batches_of(task, task.encode(Dataset.from_dict(ROWS)), 8)
    with torch.no_grad():
        readout = task.readout(model, batch)
        sources = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        own = model(**sources)
    counted = batch["labels"] != -100
    torch.testing.assert_close(readout.outputs[counted], own.logits[counted], rtol=0, atol=1e-5)
    mean = (readout.losses() * readout.positions()).sum() / readout.positions().sum()
    assert float(mean) == pytest.approx(float(own.loss), abs=1e-6)


def trained(model: PreTrainedModel, task: Task, data: Dataset, steps: int) -> PreTrainedModel:
    """The model after a few steps, which knows some of the targets by heart."""
    (batch,) = batches_of(task, task.encode(data), 100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        task.readout(model, batch).losses().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("make", [t5, bart])
def test_exact_match_is_that_of_greedy_generation(make: Any) -> None:
    rng = np.random.default_rng(moved(0))
    texts = [[" ".join(rng.choice([*"abcdefghij"], rng.integers(1, 5))) for _ in range(24)] for _ in range(2)]
    data = Dataset.from_dict({"source": texts[0], "target": texts[1]})
    model = make()
    task = seq2seq(model)
    trained(model, task, data.select(range(12)), 60)
    found = evaluate(
        forward_of(model, task), task, batches_of(task, task.encode(data), 8), Accelerator(cpu=True), intervals=False
    )
    matches, right, tokens = [], 0.0, 0
    for row in task.encode(data):
        generated = model.generate(torch.tensor([row["input_ids"]]), max_new_tokens=8, do_sample=False, num_beams=1)
        words = generated[0, 1:].tolist()
        end = words.index(END) + 1 if END in words else len(words)
        matches.append(words[:end] == row["labels"])
        with torch.no_grad():
            batch = task.collate([row])
            guesses = model(**task.inputs(batch)).logits[0].argmax(-1).tolist()
        right += sum(guess == label for guess, label in zip(guesses, row["labels"], strict=True))
        tokens += len(row["labels"])
    assert (found.scores.correct == 1).tolist() == matches
    assert 0 < np.mean(matches) < 1
    assert found.metrics["exact_match"] == pytest.approx(np.mean(matches))
    assert found.metrics["token_accuracy"] == pytest.approx(right / tokens)
    assert found.metrics["perplexity"] == pytest.approx(np.exp(found.loss))


def test_a_prefix_stands_before_every_source() -> None:
    encoded = seq2seq(prefix="j j ").encode(Dataset.from_dict(ROWS))
    assert encoded["input_ids"][0] == [15, 15, 6, 7, END]
    assert encoded["labels"][0] == [7, 6, END]
    with pytest.raises(ValueError, match=r"task\.prefix means nothing to task 'sequence_classification', got 'j '"):
        task_of(bert(), make_tokenizer("pair"), prefix="j ")


def test_long_texts_are_cut_before_their_end_token() -> None:
    encoded = seq2seq(max_length=3).encode(Dataset.from_dict(ROWS))
    assert encoded["input_ids"][:] == [[6, 7, END], [8, 9, END], [12, END]]
    assert encoded["labels"][2] == [13, 14, END]


@pytest.mark.parametrize(
    ("columns", "given", "found"),
    [
        (["document", "summary", "id"], {}, ("document", "summary")),
        (["article", "highlights"], {}, ("article", "highlights")),
        (["dialogue", "summary"], {}, ("dialogue", "summary")),
        (["question", "answer"], {}, ("question", "answer")),
        (["text", "target"], {}, ("text", "target")),
        (["english", "output", "input"], {"source": "english"}, ("english", "output")),
    ],
)
def test_usual_columns_are_found(columns: list[str], given: dict[str, str], found: tuple[str, str]) -> None:
    dataset = Dataset.from_dict({column: ["a"] for column in columns})
    assert seq2seq(columns=given).find_columns(dataset, "train") == dict(zip(("source", "target"), found, strict=True))


def test_columns_inside_a_translation_are_named_with_their_language() -> None:
    data = Dataset.from_dict({"id": [0], "translation": [{"en": "a b", "de": "c"}]})
    task = seq2seq(columns={"source": "translation.en", "target": "translation.de"})
    task.check(data, "test")
    assert task.encode(data)[0] == {"input_ids": [6, 7, END], "labels": [8, END]}
    with pytest.raises(ValueError, match=r"set task\.columns.*Its columns: id, translation\.en, translation\.de"):
        seq2seq().check(data, "test")


def test_rows_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="split 'test', column 'target': texts must be strings, got int64"):
        seq2seq().check(Dataset.from_dict({"source": ["a"], "target": [1]}), "test")
    with pytest.raises(ValueError, match="split 'test', column 'target': no value in row 1"):
        seq2seq().check(Dataset.from_dict({"source": ["a", "b"], "target": ["a", None]}), "test")
    plain = task_of(t5(), make_tokenizer("plain"))
    for column in ROWS:
        rows = {**ROWS, column: ["a", "", "b"]}
        with pytest.raises(ValueError, match=f"a {column} must have a token, got none in row 1"):
            plain.encode(Dataset.from_dict(rows))


def test_models_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must say decoder_start_token_id.*got none; set model\.config\.deco"):
        seq2seq(t5(decoder_start_token_id=None))
    with pytest.raises(ValueError, match="pad_token_id of model config and tokenizer must be equal, got 1 and 0"):
        seq2seq(t5(pad_token_id=1))
    decoder = bert().config
    decoder.architectures = ["Qwen2VLForConditionalGeneration"]
    with pytest.raises(ValueError, match="no task is known for the head of Qwen2VLForConditionalGeneration"):
        task_for_model(decoder)
    with pytest.raises(ValueError, match="seq2seq needs an encoder-decoder, bert is none"):
        type(seq2seq())(processor=make_tokenizer("end"), model_config=decoder)
