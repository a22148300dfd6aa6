"""Chats as a language model reads them: rendered by the tokenizer's chat template, with the answers known.

Symbols: N rows, T tokens.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hf_mabprune.data.columns import RowError, full_column, is_list, is_text
from hf_mabprune.errors import in_words
from hf_mabprune.tasks.batch import LABELS
from hf_mabprune.tasks.readout import NO_TARGET

MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
ASSISTANT, USER = "assistant", "user"

Message = dict[str, Any]  # with a role and a content
Spans = list[tuple[int, int]]  # from, to, in the characters of a text


def check_chats(tokenizer: PreTrainedTokenizerBase, dataset: Dataset, columns: dict[str, str], split: str) -> None:
    """Refuses a tokenizer that renders no chats, and columns that hold none, or chats without an answer.

    Args:
        tokenizer: Tokenizer of the model.
        dataset: Data set with the chats.
        columns: Role -> column: `messages`, or `prompt` and `completion`.
        split: Name of the split, for messages.

    Raises:
        ValueError: Naming split and column.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"split '{split}' has chats ({', '.join(columns.values())}), but the tokenizer has no chat template; set "
            "tokenizer.chat_template and save it, or name a column of text: task.columns: {text: ...}"
        )
    if not tokenizer.is_fast:
        raise ValueError("chats take a fast tokenizer, which says where in a text its tokens are; convert this one")
    for role, column in columns.items():
        values = full_column(dataset, column, split)
        if role == "messages" or not is_text(values.type):
            _check_messages(values, f"split '{split}', column '{column}'", answered=role != "prompt")


def _check_messages(values: pa.ChunkedArray, where: str, answered: bool) -> None:
    """Refuses what are no lists of messages, and lists without a message, or without an answer where one must be."""
    inner = values.type.value_type if is_list(values.type) else None
    if inner is None or not pa.types.is_struct(inner) or min(map(inner.get_field_index, ("role", "content"))) < 0:
        raise ValueError(f"{where}: chats must be lists of messages with a role and a content, got {values.type}")
    values = values.combine_chunks()
    roles = pc.struct_field(values.flatten(), "role")
    rows = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
    counted = pc.fill_null(pc.equal(roles, ASSISTANT), False).to_numpy(zero_copy_only=False) if answered else True
    lacking = np.flatnonzero(np.bincount(rows, weights=np.ones(len(rows)) * counted, minlength=len(values)) == 0)
    if len(lacking):
        what = f"a message of the role {ASSISTANT}" if answered else "a message"
        raise ValueError(f"{where}: a chat must have {what}, got none in row {lacking[0]}; remove such rows")


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, dataset: Dataset, columns: dict[str, str], length: int
) -> Dataset:
    """Renders and tokenises chats; columns: `input_ids`, [T], and `labels`, [T], -100 where no answer is.

    Args:
        tokenizer: Tokenizer of the model.
        dataset: Data set with the chats.
        columns: Role -> column: `messages`, or `prompt` and `completion`.
        length: Tokens after which a chat is cut.

    Raises:
        RowError: For a chat that the template refuses, and where none of the tokens is of an answer.
    """

    def encode(row: dict[str, Any], number: int) -> dict[str, list[int]]:
        prompt = _messages(row[columns["prompt"]], USER) if "prompt" in columns else []
        answer = _messages(row[columns.get("messages") or columns["completion"]], ASSISTANT)
        try:
            ids, counted = rendered(tokenizer, prompt, answer)
        except (TemplateError, TypeError, ValueError) as error:
            raise RowError(f"the chat template cannot render row {{row}}: {in_words(error)}", number) from error
        ids, counted = ids[:length], counted[:length]
        if not any(counted[1:]):
            raise RowError(
                f"a chat must have a token of an answer within {length} tokens, got none in row {{row}}; raise "
                "max_length, or remove such rows",
                number,
            )
        return {"input_ids": ids, LABELS: [token if on else NO_TARGET for token, on in zip(ids, counted, strict=True)]}

    features = Features({"input_ids": List(Value("int32")), LABELS: List(Value("int32"))})
    chats = dataset.select_columns(sorted(set(columns.values())))
    return chats.map(
        encode, with_indices=True, remove_columns=chats.column_names, features=features, desc="Rendering chats"
    )


def _messages(given: str | Sequence[Message], role: str) -> list[Message]:
    """Gives a list of messages; a text is one, of a role."""
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    return [{key: value for key, value in message.items() if value is not None} for message in given]


def rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], answer: list[Message]
) -> tuple[list[int], list[bool]]:
    """Renders a chat.

    Tokens of an answer are those that the template marks ({% generation %}). Where it marks none, and after a prompt,
    they are what the rendering with a message of the assistant adds to the rendering before it with the generation
    prompt. An earlier message counts if it is rendered the same way once more follows; some templates leave out its
    thoughts then.

    Args:
        tokenizer: Tokenizer with a chat template.
        prompt: Messages of which none counts.
        answer: Messages after those, of which the assistant's count.

    Returns:
        Token ids, [T], and which of them are of an answer, [T].

    Raises:
        ValueError: If the last answer cannot be told from what is before it.
    """
    marks = not prompt and MARKS_ANSWERS.search(tokenizer.get_chat_template())
    text, spans = _marked(tokenizer, answer) if marks else _added(tokenizer, prompt + answer, len(prompt))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    counted = [any(start <= first < stop for start, stop in spans) for first, _ in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), counted


def _marked(tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> tuple[str, Spans]:
    """Gives the text of a chat, and where in it the template says that answers are.

    The mask of tokens that `apply_chat_template` makes of it goes on to the end of the text where a mark ends in white
    space that no token holds.
    """
    options: dict[str, Any] = dict(tokenizer.special_tokens_map, return_assistant_tokens_mask=True)
    made: Any = render_jinja_template([chat], chat_template=tokenizer.get_chat_template(), **options)
    texts, spans = made
    return texts[0], spans[0]


def _added(tokenizer: PreTrainedTokenizerBase, chat: list[Message], prompt: int) -> tuple[str, Spans]:
    """Gives the text of a chat, and where in it is what messages of the assistant add, from a message on."""

    def text_of(messages: list[Message], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    text, spans, fits = text_of(chat), [], False
    for number in range(prompt, len(chat)):
        if chat[number]["role"] != ASSISTANT:
            continue
        before = text_of(chat[:number], add_generation_prompt=True) if number else ""
        through = text_of(chat[: number + 1])
        fits = text.startswith(through) and through.startswith(before)
        spans += [(len(before), len(through))] if fits else []
    if not fits:
        raise ValueError(
            "its rendering does not begin with that of what is before the last answer, so no token is known to be of "
            "the answer; mark answers in the template with {% generation %}"
        )
    return text, spans
