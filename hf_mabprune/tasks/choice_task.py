"""What tasks share whose examples are a text and several others that go with it more or less well."""

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.columns import RowError, column_of, full_column, is_text
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.token_task import TokenTask, check_padding


@dataclass(kw_only=True)
class ChoiceTask(TokenTask):
    """Reads a text with several others, one of which is right, an example the whole row.

    Roles, in this order: the text; the others, a list, as many in every row of a split, or the texts beside their
    names, as in `{text: [...], label: [A, B, C, D]}`; and the label, the index of the right one from 0 on, as a number
    or written out, or its name. Each of the others is framed with the text as a pair, cut at `max_length` tokens (256
    by default, or what tokenizer and model can take), and padded on the right to the longest of a batch.
    """

    metric_inputs: ClassVar[dict[str, str]] = {"predictions": "predicted", "references": "reference"}
    default_length: ClassVar[int] = 256
    rows_are_examples: ClassVar[bool] = True
    reads_one_position: ClassVar[bool] = True
    usual_names: ClassVar[tuple[tuple[str, ...], ...]]  # of the column of each role

    def __post_init__(self) -> None:
        check_padding(self.processor, self.model_config)
        super().__post_init__()

    @property
    def classes(self) -> int:
        """Counts at least three: the head takes any number of choices, none special as class 1 of two may be."""
        return max(3, super().classes)

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists all combinations of the usual names."""
        return [dict(zip(self.roles, names, strict=True)) for names in product(*self.usual_names)]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, rows that differ in their choices, and wrong labels."""
        columns = self.find_columns(dataset, split)
        self.check_texts(dataset, columns[self.roles[0]], split)
        self._labels(dataset, columns, split)

    def _choices(self, dataset: Dataset, column: str, split: str) -> pa.ChunkedArray:
        """Gives the choices of each row, [N] lists of as many texts each, or refuses them."""
        values = full_column(dataset, column, split)
        where = f"split '{split}', column '{column}'"
        if pa.types.is_struct(values.type) and values.type.get_field_index("text") >= 0:
            values = pc.struct_field(values, "text")
        texts = values.type.value_type if pa.types.is_list(values.type) or _is_other_list(values.type) else None
        if texts is None or not is_text(texts):
            raise ValueError(f"{where}: {self.roles[1]} must be lists of texts, got {values.type}")
        counts = pc.list_value_length(values).to_numpy()
        other = np.flatnonzero(counts != counts[0])
        if len(other):
            raise ValueError(
                f"{where}: all rows must have as many {self.roles[1]}, got {counts[0]} in row 0 and "
                f"{counts[other[0]]} in row {other[0]}; remove the rows that differ"
            )
        if counts[0] < 2:
            raise ValueError(f"{where}: rows must have at least 2 {self.roles[1]}, got {counts[0]}")
        flat = pc.list_flatten(values)
        if flat.null_count:
            row = int(np.flatnonzero(flat.is_null().to_numpy())[0]) // int(counts[0])
            raise ValueError(f"{where}: a choice in row {row} has no text; remove such rows")
        return values

    def _labels(self, dataset: Dataset, columns: dict[str, str], split: str) -> NDArray[np.int64]:
        """Gives the index of the right choice of each row, [N], or refuses the labels."""
        _, others, label = (columns[role] for role in self.roles)
        count = len(self._choices(dataset, others, split)[0])
        values = full_column(dataset, label, split)
        where = f"split '{split}', column '{label}'"
        if is_text(values.type):
            indices = _by_name(column_of(dataset, others), values.to_pylist())
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

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: what the tokenizer gives for each choice, [choices, T], and `labels`."""
        columns = self.find_columns(dataset, "data")
        tokenizer, length = self.processor, self.length
        text, others, _ = (columns[role] for role in self.roles)
        choices = self._choices(dataset, others, "data")
        count = len(choices[0])
        texts = dataset.select_columns([text]).rename_column(text, "context")
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


def _by_name(choices: pa.ChunkedArray, written: list[str]) -> NDArray[np.int64]:
    """Gives the index of the choice that is named, or whose index is written out, [N]; -1 where there is none."""
    named = pa.types.is_struct(choices.type) and choices.type.get_field_index("label") >= 0
    names = pc.struct_field(choices, "label").to_pylist() if named else [[]] * len(written)
    return np.array(
        [
            row.index(word) if word in row else int(word) if word.isdecimal() else -1
            for word, row in zip(written, names, strict=True)
        ],
        dtype=np.int64,
    )


def _is_other_list(kind: pa.DataType) -> bool:
    return pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
