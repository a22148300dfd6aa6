"""Choice of the text that goes best with a context, among several."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.columns import RowError, column_of, full_column, is_text
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.token_task import TokenTask, check_padding

CONTEXTS = ("question", "question_stem", "ctx", "context", "sent1", "startphrase")
CHOICES = ("choices", "endings", "options")
LABELS = ("label", "labels", "answerKey", "answer")


@TASKS.register("multiple_choice")
@dataclass(kw_only=True)
class MultipleChoice(TokenTask):
    """Predicts the right one of several texts. Roles: `context`, `choices` and `label`.

    `choices` are a list of texts, as many in every row of a split, or the texts beside their names, as in
    `{text: [...], label: [A, B, C, D]}`. `label` is the index of the right one from 0 on, as a number or written out,
    or its name. Each choice is framed with the context as a pair of texts, cut at `max_length` tokens (256 by default,
    or what tokenizer and model can take), and padded on the right to the longest of a batch.

    The model reads [B, choices, T] and gives one logit a choice; an example is the whole row.
    """

    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    pipeline_tag: ClassVar[str | None] = "multiple-choice"
    heads: ClassVar[tuple[str, ...]] = ("ForMultipleChoice",)
    roles: ClassVar[tuple[str, ...]] = ("context", "choices", "label")
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    metric_inputs: ClassVar[dict[str, str]] = {"predictions": "predicted", "references": "reference"}
    default_length: ClassVar[int] = 256
    rows_are_examples: ClassVar[bool] = True
    reads_one_position: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_padding(self.processor, self.model_config)
        super().__post_init__()

    @property
    def classes(self) -> int:
        """Counts at least three: the head takes any number of choices, none special as class 1 of two may be."""
        return max(3, super().classes)

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists all combinations of the usual names."""
        return [
            {"context": context, "choices": choices, "label": label}
            for context in CONTEXTS
            for choices in CHOICES
            for label in LABELS
        ]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, rows that differ in their choices, and wrong labels."""
        columns = self.find_columns(dataset, split)
        self.check_texts(dataset, columns["context"], split)
        self._labels(dataset, columns, split)

    def _choices(self, dataset: Dataset, column: str, split: str) -> pa.ChunkedArray:
        """Gives the choices of each row, [N] lists of as many texts each, or refuses them."""
        values = full_column(dataset, column, split)
        where = f"split '{split}', column '{column}'"
        if pa.types.is_struct(values.type) and values.type.get_field_index("text") >= 0:
            values = pc.struct_field(values, "text")
        texts = values.type.value_type if pa.types.is_list(values.type) or _is_other_list(values.type) else None
        if texts is None or not is_text(texts):
            raise ValueError(f"{where}: choices must be lists of texts, got {values.type}")
        counts = pc.list_value_length(values).to_numpy()
        other = np.flatnonzero(counts != counts[0])
        if len(other):
            raise ValueError(
                f"{where}: all rows must have as many choices, got {counts[0]} in row 0 and {counts[other[0]]} in row "
                f"{other[0]}; remove the rows that differ"
            )
        if counts[0] < 2:
            raise ValueError(f"{where}: rows must have at least 2 choices, got {counts[0]}")
        flat = pc.list_flatten(values)
        if flat.null_count:
            row = int(np.flatnonzero(flat.is_null().to_numpy())[0]) // int(counts[0])
            raise ValueError(f"{where}: a choice in row {row} has no text; remove such rows")
        return values

    def _labels(self, dataset: Dataset, columns: dict[str, str], split: str) -> NDArray[np.int64]:
        """Gives the index of the right choice of each row, [N], or refuses the labels."""
        count = len(self._choices(dataset, columns["choices"], split)[0])
        values = full_column(dataset, columns["label"], split)
        where = f"split '{split}', column '{columns['label']}'"
        if is_text(values.type):
            indices = self._by_name(dataset, columns, values.to_pylist())
        elif pa.types.is_integer(values.type):
            indices = values.to_numpy().astype(np.int64)
        else:
            raise ValueError(f"{where}: labels must be the index of a choice, or its name, got {values.type}")
        wrong = np.flatnonzero((indices < 0) | (indices >= count))
        if len(wrong):
            value = values[wrong[0]].as_py()
            raise ValueError(
                f"{where}: labels must be from 0 to {count - 1}, the index of a choice, or the name of one, got "
                f"{value!r} in row {wrong[0]}; this split may have no labels, or count from 1"
            )
        return indices

    def _by_name(self, dataset: Dataset, columns: dict[str, str], written: list[str]) -> NDArray[np.int64]:
        """Gives the index of the choice that is named, or whose index is written out, [N]; -1 where there is none."""
        choices = column_of(dataset, columns["choices"])
        named = pa.types.is_struct(choices.type) and choices.type.get_field_index("label") >= 0
        names = pc.struct_field(choices, "label").to_pylist() if named else [[]] * len(written)
        return np.array(
            [
                row.index(word) if word in row else int(word) if word.isdecimal() else -1
                for word, row in zip(written, names, strict=True)
            ],
            dtype=np.int64,
        )

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: what the tokenizer gives for each choice, [choices, T], and `labels`."""
        columns = self.find_columns(dataset, "data")
        tokenizer, length = self.processor, self.length
        choices = self._choices(dataset, columns["choices"], "data")
        count = len(choices[0])
        texts = dataset.select_columns([columns["context"]]).rename_column(columns["context"], "context")
        texts = texts.add_column("choices", choices.to_pylist())

        def tokenise(rows: dict[str, list[Any]]) -> dict[str, Any]:
            contexts = [context for context in rows["context"] for _ in range(count)]
            flat = [choice for row in rows["choices"] for choice in row]
            encoded = tokenizer(contexts, flat, truncation=True, max_length=length)
            return {
                name: [values[at : at + count] for at in range(0, len(flat), count)]
                for name, values in encoded.items()
            }

        encoded = texts.map(tokenise, batched=True, remove_columns=texts.column_names, desc="Tokenising")
        lengths = pc.list_value_length(pc.list_flatten(column_of(encoded, "input_ids"))).to_numpy()
        if not lengths.all():
            row = int(np.flatnonzero(lengths == 0)[0]) // count
            raise RowError("a choice must have at least one token, got none in row {row}; remove such rows", row)
        self.check_ids(encoded)
        return encoded.add_column("labels", self._labels(dataset, columns, "data").tolist())

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs [B, choices, T], padded on the right, and labels [B]."""
        names = [name for name in examples[0] if name != "labels"]
        flat = {name: [choice for example in examples for choice in example[name]] for name in names}
        padded = self.processor.pad(flat, padding_side="right", return_tensors="pt")
        batch = {name: tensor.unflatten(0, (len(examples), -1)) for name, tensor in padded.items()}
        return Batch(batch, labels=torch.tensor([example["labels"] for example in examples]))

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes the one position of each example a dimension, [B, choices] -> [B, 1, choices]."""
        return Readout(outputs=logits[:, None], targets=batch["labels"][:, None])


def _is_other_list(kind: pa.DataType) -> bool:
    return pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
