"""Single-label classification of a text, or of a pair of texts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from hf_mabprune.tasks.base import TASKS, Batch, Readout, Task, column_of, refuse_missing_values

# Pairs first: a data set with a question and a sentence is about both.
TEXTS = (
    {"text": "premise", "text_pair": "hypothesis"},
    {"text": "sentence1", "text_pair": "sentence2"},
    {"text": "question1", "text_pair": "question2"},
    {"text": "question", "text_pair": "passage"},
    {"text": "question", "text_pair": "sentence"},
    {"text": "text", "text_pair": "text_pair"},
    {"text": "sentence"},
    {"text": "text"},
    {"text": "content"},
    {"text": "review"},
)
LABELS = ("label", "labels")


@TASKS.register("sequence_classification")
@dataclass(kw_only=True)
class SequenceClassification(Task):
    """Roles: `text`, `text_pair` (optional) and `label`.

    Texts are cut at `max_length` tokens, 256 by default or what tokenizer and model can take, and padded on the right
    to the longest of a batch. Labels are class numbers, or class names that the model's `label2id` has; a `ClassLabel`
    column whose names `label2id` has is translated by name, since data sets and models may order classes differently.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    heads: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)
    roles: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    metric_inputs: ClassVar[dict[str, str]] = {"predictions": "predicted", "references": "reference"}
    default_length: ClassVar[int] = 256
    rows_are_examples: ClassVar[bool] = True
    reads_one_position: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_head()
        self._check_padding()
        super().__post_init__()

    def _check_head(self) -> None:
        if self.classes < 2:
            raise ValueError(
                f"num_labels must be at least 2, got {self.classes}: regression is not supported; "
                "use a model with a class for each label"
            )
        if self.model_config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"problem_type must be single_label_classification, got {self.model_config.problem_type}; "
                "use a model whose classes exclude each other"
            )

    def _check_padding(self) -> None:
        """Decoders read the last token that is not padding, so tokenizer and model must agree on what padding is."""
        config = self.model_config.get_text_config()
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer must have a pad token to make batches, got none; set tokenizer.pad_token and "
                "model.config.pad_token_id, as in training"
            )
        if config.pad_token_id != self.tokenizer.pad_token_id:
            raise ValueError(
                f"pad_token_id of model config and tokenizer must be equal, got {config.pad_token_id} and "
                f"{self.tokenizer.pad_token_id}; set model.config.pad_token_id"
            )
        if config.pad_token_id >= config.vocab_size:
            raise ValueError(
                f"pad_token_id must be below {config.vocab_size}, the model's vocabulary, got {config.pad_token_id}; "
                "resize the model's embeddings, or choose another pad token"
            )

    def usual_columns(self) -> list[dict[str, str]]:
        """A text that was named stands alone unless a pair was named too."""
        texts = ({},) if "text" in self.columns else TEXTS
        return [{**columns, "label": label} for columns in texts for label in LABELS]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, and labels that the head has no class for."""
        if not len(dataset):
            raise ValueError(f"split '{split}' must not be empty, got 0 rows; choose another slice")
        columns = self.find_columns(dataset, split)
        for role in ("text", "text_pair"):
            if role in columns:
                self.check_texts(dataset, columns[role], split)
        self._classes(dataset, columns["label"], split)

    def _classes(self, dataset: Dataset, column: str, split: str) -> NDArray[np.int64]:
        """[N] class numbers of the head."""
        values = column_of(dataset, column)
        where = f"split '{split}', column '{column}'"
        refuse_missing_values(values, column, split)
        known = {str(name).casefold(): int(number) for name, number in (self.model_config.label2id or {}).items()}
        feature = dataset.features[column]
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            return self._by_name(values.to_pylist(), known, where)
        if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
            raise ValueError(f"{where}: labels must be whole numbers or class names, got {values.type}")
        classes = values.to_numpy().astype(np.int64)
        self._check_range(classes, where)
        if isinstance(feature, ClassLabel) and all(name.casefold() in known for name in feature.names):
            return np.array([known[name.casefold()] for name in feature.names])[classes]
        return classes

    def _by_name(self, names: list[str], known: dict[str, int], where: str) -> NDArray[np.int64]:
        for row, name in enumerate(names):
            if name.casefold() not in known:
                raise ValueError(
                    f"{where}: labels must be among the model's, {', '.join(known)}, got '{name}' in row {row}; "
                    "set label2id in the model's config, or rename the labels"
                )
        return np.array([known[name.casefold()] for name in names], dtype=np.int64)

    def _check_range(self, classes: NDArray[np.int64], where: str) -> None:
        count = self.classes
        wrong = np.flatnonzero((classes < 0) | (classes >= count))
        if len(wrong):
            value = int(classes[wrong[0]])
            remedy = "this split may have no labels, choose another" if value < 0 else "use a model with more classes"
            raise ValueError(
                f"{where}: labels must be from 0 to {count - 1}, the classes of the model's head, got {value} "
                f"in row {wrong[0]}; {remedy}"
            )

    def encode(self, dataset: Dataset) -> Dataset:
        """Columns: what the tokenizer gives for each row, [T] each, and `labels`."""
        columns = self.find_columns(dataset, "data")
        texts = [columns[role] for role in ("text", "text_pair") if role in columns]
        tokenizer, length = self.tokenizer, self.length

        def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
            return dict(tokenizer(*(rows[text] for text in texts), truncation=True, max_length=length))

        encoded = dataset.select_columns(texts).map(tokenise, batched=True, remove_columns=texts, desc="Tokenising")
        empty = np.flatnonzero(pc.list_value_length(column_of(encoded, "input_ids")).to_numpy() == 0)
        if len(empty):
            raise ValueError(f"a text must have at least one token, got none in row {empty[0]}; remove such rows")
        self.check_ids(encoded)
        return encoded.add_column("labels", self._classes(dataset, columns["label"], "data"))

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs [B, T], padded on the right, and labels [B]."""
        inputs = [{name: value for name, value in example.items() if name != "labels"} for example in examples]
        batch = dict(self.tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """[B, C] -> the one position of each example, [B, 1, C]."""
        return Readout(logits=logits[:, None], targets=batch["labels"][:, None])
