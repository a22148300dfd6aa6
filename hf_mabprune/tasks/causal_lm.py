"""Language modelling: predict every token of a window from those before it, or those of the answers of a chat."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

from hf_mabprune.data.columns import column_of
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.chat import check_chats, encode_chats
from hf_mabprune.tasks.decoder_task import DecoderTask

TEXTS = ("text", "content", "document")
CHATS = ({"messages": "messages"}, {"prompt": "prompt", "completion": "completion"})
CHAT_LENGTH = 512  # tokens


@TASKS.register("causal_lm")
@dataclass(kw_only=True)
class CausalLM(DecoderTask):
    """Predicts every token from those before it. Roles: `text`; or `messages`, or `prompt` and `completion`.

    The rows are joined in their order and cut into consecutive windows of `max_length` tokens, 128 by default; what is
    left at the end is dropped. A row is taken for a document, which the tokenizer's end-of-sequence token closes if it
    has one, unless it is empty or ends in a newline: then it is a line of running text, and nothing is added (WikiText
    comes like that). Where the tokenizer puts a beginning-of-sequence token in front of a text, every window begins
    with one, as part of its length; it is never a target.

    Without a text, a row is a chat: `messages`, a list of {role, content}, or a `prompt` with its `completion`, as
    such lists or as texts. The tokenizer's chat template renders it, and the loss, the KL divergence and the
    perplexity count the tokens of the assistant's messages alone, those of the completion where there is one. A chat
    is cut at `max_length` tokens, 512 by default.
    """

    roles: ClassVar[tuple[str, ...]] = ("text", "messages", "prompt", "completion")
    default_length: ClassVar[int] = 128
    rows_are_examples: ClassVar[bool] = False
    takes_plain_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(bool(self.columns.keys() & roles) for roles in ({"text"}, *CHATS)) > 1:
            raise ValueError(
                "a row is a text, or messages, or a prompt with its completion, got columns for "
                f"{', '.join(self.columns)}; name those of one kind"
            )

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists the usual names of texts, then those of chats; of the one kind that the user named a column of."""
        usual = [*({"text": text} for text in TEXTS), *CHATS]
        return [columns for columns in usual if self.columns.keys() <= columns.keys()]

    def draws_rows(self, dataset: Dataset) -> bool:
        """Says so of chats."""
        return "text" not in self.find_columns(dataset, "data")

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, texts that are all empty, and what are no chats."""
        columns = self.find_columns(dataset, split)
        if "text" not in columns:
            check_chats(self.processor, dataset, columns, split)
            return
        column = columns["text"]
        self.check_texts(dataset, column, split)
        if not pc.any(pc.not_equal(column_of(dataset, column), "")).as_py():
            raise ValueError(f"split '{split}', column '{column}': all {len(dataset):,} texts are empty")

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows and cuts windows; column: `input_ids`, [T] with T the same for all. Of chats as
        `encode_chats`.

        Raises:
            ValueError: If the text does not fill one window.
        """
        columns = self.find_columns(dataset, "data")
        if "text" not in columns:
            encoded = encode_chats(self.processor, dataset, columns, self.resolve_length(CHAT_LENGTH))
            self.check_ids(encoded)
            return encoded
        column, tokenizer = columns["text"], self.processor

        def tokenise(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            # verbose=False: that a document is longer than the model's positions is no mistake here.
            tokens = tokenizer(rows[column], add_special_tokens=False, verbose=False)["input_ids"]
            end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            lines = (not text or text.endswith("\n") for text in rows[column])
            return {"input_ids": [ids if line else ids + end for ids, line in zip(tokens, lines, strict=True)]}

        # Stated, since a first batch of empty lines would leave the type of its tokens open.
        features = Features({"input_ids": List(Value("int32"))})
        tokens = dataset.select_columns([column]).map(
            tokenise, batched=True, remove_columns=[column], features=features, desc="Tokenising"
        )
        self.check_ids(tokens)
        return Dataset.from_dict({"input_ids": self._windows(tokens)})

    def _windows(self, tokens: Dataset) -> NDArray[np.int32]:
        """Cuts all tokens into consecutive windows, [N, T]."""
        flat = column_of(tokens, "input_ids").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        begin = self.processor.bos_token_id
        # Asked by example: whether a beginning token is added is no attribute that all tokenizers share.
        starts = begin is not None and self.processor("")["input_ids"][:1] == [begin]
        width = self.length - int(starts)
        count = len(flat) // width
        if not count:
            raise ValueError(f"a window takes {width} tokens of text, got {len(flat)}; add text or lower max_length")
        windows = flat[: count * width].reshape(count, width)
        return np.insert(windows, 0, begin, axis=1) if starts else windows

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes `input_ids` [B, T], and `labels`, the same ids; of chats inputs and labels, padded on the right. The
        shift is made where logits are read."""
        if LABELS in examples[0]:
            return self.with_targets(examples)
        windows = torch.tensor(np.array([example["input_ids"] for example in examples]), dtype=torch.long)
        return Batch(input_ids=windows, labels=windows)
