from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertLMHeadModel

from hf_mabprune.tasks import answer
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.lookup import task_for_model
from hf_mabprune.tasks.sampling import batches_of
from tests.seeds import moved
from tests.tasks.tiny_tasks import bert_config, llama, make_tokenizer, task_of

UNKNOWN, BEGIN, END, A, B, C, D = 1, 4, 5, 6, 7, 8, 9


def answers(kind: str = "plain", **settings: Any) -> Task:
    return task_of(llama(), make_tokenizer(kind), type="answer", **settings)


@pytest.fixture(autouse=True)
def short_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """One word, which the tokenizer does not know, after the question."""
    monkeypatch.setattr(answer, "PROMPT", "{} ?")


def rows(questions: list[Any], texts: list[Any]) -> Dataset:
    return Dataset.from_dict({"question": questions, "answer": texts})


TWO = rows(["a b", "c"], ["d", "a b c"])


def test_only_the_answer_is_counted() -> None:
    task, model = answers(), llama()
    (batch,) = batches_of(task, task.encode(TWO), 8)
    assert batch["input_ids"].tolist() == [[A, B, UNKNOWN, D, END, 0], [C, UNKNOWN, A, B, C, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert batch["labels"].tolist() == [[-100, -100, -100, D, END, -100], [-100, -100, A, B, C, END]]
    with torch.no_grad():
        readout = task.readout(model, batch)
    assert readout.positions().tolist() == [2, 4]
    assert readout.targets.tolist() == [[-100, -100, D, END, -100], [-100, A, B, C, END]]


def test_the_divergence_counts_the_answer_alone() -> None:
    task, model = answers(), llama()
    (batch,) = batches_of(task, task.encode(TWO), 8)
    with torch.no_grad():
        dense = task.readout(model, batch)
        torch.manual_seed(moved(2))
        model.lm_head.weight.add_(0.5 * torch.randn_like(model.lm_head.weight))
        readout = task.readout(model, batch)
    p, q = dense.outputs.double().log_softmax(-1), readout.outputs.double().log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1)
    expected = [float(each[0, 2:4].mean()), float(each[1, 1:5].mean())]
    assert readout.divergence(dense).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_prompt_begins_as_the_tokenizer_does() -> None:
    (batch,) = batches_of(answers("begin"), answers("begin").encode(TWO), 8)
    assert batch["input_ids"][1].tolist() == [BEGIN, C, UNKNOWN, A, B, C, END]
    assert batch["labels"][1].tolist() == [-100, -100, -100, A, B, C, END]


def test_long_answers_are_cut_at_the_end() -> None:
    encoded = answers(max_length=4).encode(rows(["c"], ["a b c d"]))
    assert encoded["input_ids"][0] == [C, UNKNOWN, A, B]


def test_a_question_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="one token within 4, got none in row 1, whose question takes 5; raise"):
        answers(max_length=4).encode(rows(["a", "a b c d"], ["b", "b"]))


def test_an_empty_answer_is_its_end() -> None:
    assert answers().encode(rows(["a"], [""]))["input_ids"][0] == [A, UNKNOWN, END]
    endless = task_of(llama(), make_tokenizer("plain", eos_token=None), type="answer")
    with pytest.raises(ValueError, match="an answer must have at least one token within 32, got none in row 0"):
        endless.encode(rows(["a"], [""]))


def test_no_pad_token_is_needed() -> None:
    task = task_of(llama(), make_tokenizer("plain", pad_token=None), type="answer")
    assert batches_of(task, task.encode(TWO), 8)[0]["input_ids"].shape == (2, 6)


def test_it_has_to_be_asked_for() -> None:
    assert task_for_model("LlamaForCausalLM", llama().config) == "causal_lm"


def test_missing_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="split 'train', column 'answer': no value in row 1"):
        answers().check(rows(["a", "b"], ["c", None]), "train")


def test_an_encoder_does_not_answer() -> None:
    model = BertLMHeadModel(bert_config(is_decoder=True))
    model.config.is_decoder = False
    with pytest.raises(ValueError, match="must not see the tokens that it predicts"):
        task_of(model, make_tokenizer("plain"), type="answer")
