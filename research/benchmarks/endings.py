"""Questions that a language model answers by the ending that it finds likeliest: HellaSwag, BoolQ.

The answer is the ending with the highest mean log-likelihood per token, given the context; nothing is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import NO_TARGET

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """A context, what may follow it, and the number of what does."""

    context: str
    endings: Sequence[str]
    right: int


def read_questions(file: str, count: int, seed: int) -> list[Question]:
    """Draws questions from a parquet file.

    Args:
        file: With columns `ctx`, `endings` and `label`, as HellaSwag has them, or `passage`, `question` and `label`,
            as BoolQ has them.
        count: Questions at most.
        seed: Seed of the draw.

    Raises:
        ValueError: If it has other columns.
    """
    frame = pd.read_parquet(file)
    frame = frame.sample(min(count, len(frame)), random_state=seed)
    if {"ctx", "endings", "label"} <= {*frame}:
        return [
            Question(row["ctx"], [f" {each}" for each in row["endings"]], int(row["label"])) for row in rows(frame)
        ]
    if {"passage", "question", "label"} <= {*frame}:
        return [Question(_asked(row), [" no", " yes"], int(row["label"])) for row in rows(frame)]
    raise ValueError(
        f"{file} needs columns ctx, endings, label or passage, question, label, got {', '.join(frame.columns)}"
    )


def rows(frame: pd.DataFrame) -> list[Row]:
    """Lists the rows, column -> value."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _asked(row: Row) -> str:
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"


def answered(
    model: PreTrainedModel, task: Task, questions: Sequence[Question], length: int, batch_size: int
) -> NDArray[np.bool_]:
    """Tells which questions a language model answers right, [N]; arguments as those of `losses_of_endings`."""
    pairs = zip(losses_of_endings(model, task, questions, length, batch_size), questions, strict=True)
    return np.array([int(np.argmin(losses)) == question.right for losses, question in pairs])


@torch.inference_mode()
def losses_of_endings(
    model: PreTrainedModel, task: Task, questions: Sequence[Question], length: int, batch_size: int
) -> list[NDArray[np.float64]]:
    """Gives the mean negative log-likelihood per token of every ending, [endings] for each question.

    Args:
        model: The model.
        task: Its task of language modelling.
        questions: The questions.
        length: Tokens that context and ending have at most; the beginning of a longer context is left out.
        batch_size: Endings that go through the model at a time.
    """
    encoded = [
        _encoded(task, question.context, ending, length) for question in questions for ending in question.endings
    ]
    losses = np.empty(len(encoded))
    order = np.argsort([len(ids) for ids, _ in encoded], kind="stable")
    for places in over(np.split(order, range(batch_size, len(order), batch_size)), "endings"):
        batch = _collated([encoded[place] for place in places]).to(model.device)
        losses[places] = task.readout(model, batch).losses().cpu().numpy()
    return np.split(losses, np.cumsum([len(question.endings) for question in questions])[:-1])


def _encoded(task: Task, context: str, ending: str, length: int) -> tuple[list[int], int]:
    """Gives tokens, and how many of them come before the ending."""
    tokenizer: Any = task.processor
    begin = [tokenizer.bos_token_id] if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else []
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, ending))
    room = max(length - len(begin) - len(after), 1)
    ids = begin + before[-room:]
    return ids + after, len(ids)


def _collated(encoded: Sequence[tuple[list[int], int]]) -> Batch:
    """Makes ids, mask and labels, [B, T], padded on the right; only the tokens of endings are targets."""
    ids = [torch.tensor(tokens) for tokens, _ in encoded]
    labels = [torch.tensor([NO_TARGET] * before + tokens[before:]) for tokens, before in encoded]
    return Batch(
        input_ids=pad_sequence(ids, batch_first=True),
        attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        labels=pad_sequence(labels, batch_first=True, padding_value=NO_TARGET),
    )
