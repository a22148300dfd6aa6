"""What tasks share whose examples are one text, or a pair of texts, with a label: classification and regression."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.columns import RowError, column_of
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.token_task import TokenTask, check_padding

# Pairs first: a data set with a question and a sentence is about both.
TEXTS = (
    {"text": "premise", "text_pair": "hypothesis"},
    {"text": "sentence1", "text_pair": "sentence2"},
    {"text": "sentence_A", "text_pair": "sentence_B"},
    {"text": "question1", "text_pair": "question2"},
    {"text": "question", "text_pair": "passage"},
    {"text": "question", "text_pair": "sentence"},
    {"text": "text", "text_pair": "text_pair"},
    {"text": "sentence"},
    {"text": "text"},
    {"text": "content"},
    {"text": "review"},
)


@dataclass(kw_only=True)
class TextTask(TokenTask):
    """Reads one text a row, or two. Roles: `text`, `text_pair` (optional) and `label`.

    Texts are cut at `max_length` tokens, 256 by default or what tokenizer and model can take, and padded on the right
    to the longest of a batch.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline_tag: ClassVar[str | None] = "text-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)
    roles: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    metric_inputs: ClassVar[dict[str, str]] = {"predictions": "predicted", "references": "reference"}
    default_length: ClassVar[int] = 256
    rows_are_examples: ClassVar[bool] = True
    reads_one_position: ClassVar[bool] = True
    usual_labels: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        self.check_head()
        check_padding(self.processor, self.model_config)
        super().__post_init__()

    @abstractmethod
    def check_head(self) -> None:
        """Refuses a head that the task cannot serve, with a ValueError."""

    @abstractmethod
    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[Any]:
        """Gives what the model is to say of each row, [N] or [N, outputs].

        Args:
            dataset: Data set with the labels.
            column: Column that holds them.
            split: Name of the split, for messages.

        Raises:
            ValueError: For labels that do not fit the head; the message names split and column.
        """

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists the usual pairs and texts; a text that the user named stands alone unless a pair was named too."""
        texts = ({},) if "text" in self.columns else TEXTS
        return [{**columns, "label": label} for columns in texts for label in self.usual_labels]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, and labels that do not fit the head."""
        self.check_pair(dataset, split)
        self.labels(dataset, self.find_columns(dataset, split)["label"], split)

    def targets(self, dataset: Dataset, split: str) -> NDArray[Any] | None:
        """Gives the labels."""
        return self.labels(dataset, self.find_columns(dataset, split)["label"], split)

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: what the tokenizer gives for each, [T], and `labels`."""
        columns = self.find_columns(dataset, "data")
        texts = [columns[role] for role in ("text", "text_pair") if role in columns]
        tokenizer, length = self.processor, self.length

        def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
            return dict(tokenizer(*(rows[text] for text in texts), truncation=True, max_length=length))

        encoded = dataset.select_columns(texts).map(tokenise, batched=True, remove_columns=texts, desc="Tokenising")
        empty = np.flatnonzero(pc.list_value_length(column_of(encoded, "input_ids")).to_numpy() == 0)
        if len(empty):
            message = "a text must have at least one token, got none in row {row}; remove such rows"
            raise RowError(message, int(empty[0]))
        self.check_ids(encoded)
        return encoded.add_column("labels", self.labels(dataset, columns["label"], "data").tolist())

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs [B, T], padded on the right, and labels [B] or [B, outputs]."""
        return Batch(self.padded(examples), labels=torch.tensor([example["labels"] for example in examples]))
