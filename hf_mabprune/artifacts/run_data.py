"""The test examples of a finished run, read again: what a page shows of them is stored nowhere else.

The data are there where the run had them, or the user says where; that they are the same, their hash tells.

Symbols: N examples of the test split, in the order of its batches, which is that of `evaluation.examples`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from hf_mabprune.checkpoints.load import load_config
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.config import PruneConfig
from hf_mabprune.data.columns import column_of
from hf_mabprune.data.splits import draw, drawn_rows, load_splits
from hf_mabprune.errors import beginning, one_line
from hf_mabprune.evaluation.report import Report
from hf_mabprune.registry import nearest
from hf_mabprune.runtime.hashes import sha256_of_batches
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.lookup import build_task, loaded_class
from hf_mabprune.tasks.sampling import encode_sample, evaluation_batches_of, length_order

LONGEST_SHOWN = 400  # characters of a text
MOST_VALUES = 12  # of a column that makes slices without being asked
ANSWERS = {"label", "score", "tags"}  # roles of what is right, which is shown in words of its own


@dataclass(frozen=True)
class RunData:
    """The test examples of a run.

    Attributes:
        task: Task of the run.
        rows: Rows that were drawn, in the order of the draw; None where an example is no row but a window of tokens.
        encoded: What the task made of them.
        order: Numbers of the examples in the draw, [N].
        numbers: Numbers of the drawn rows in their split.
    """

    task: Task
    rows: Dataset | None
    encoded: Dataset
    order: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def place(self, example: int) -> str:
        """Says where an example stands in the data."""
        number = self.order[example]
        return f"window {number:,}" if self.rows is None else f"row {self.numbers[number]:,}"

    def texts(self, example: int) -> list[tuple[str, str]]:
        """Gives what the model read of an example, as pairs of a column and its beginning; nothing of images."""
        number = int(self.order[example])
        if self.rows is None:
            tokenizer: Any = self.task.processor
            return [("text", shown(str(tokenizer.decode(self.encoded[number]["input_ids"]))))]
        row = self.rows.select_columns(self.inputs)[number]
        return [(column, shown(in_words)) for column, value in row.items() if (in_words := _in_words(value))]

    @property
    def inputs(self) -> list[str]:
        """Names the columns that the task reads, without those that say what is right."""
        assert self.rows is not None
        columns = self.task.find_columns(self.rows, "test")
        right = {column for role, column in columns.items() if role in ANSWERS}
        return [column for column in self.task.columns_read(self.rows, "test") if column not in right]

    def slices(self, named: Sequence[str] = ()) -> dict[str, list[str]]:
        """Gives the values of columns that cut the data into slices: column -> [N] in words.

        Args:
            named: Columns; none takes those that the task does not read and that have 2 to 12 values.

        Raises:
            ValueError: For a column that is not there.
        """
        if self.rows is None:
            if named:
                raise ValueError(f"{named[0]} cannot cut the data: an example is a window of tokens, and no row")
            return {}
        for column in named:
            if column not in self.rows.column_names:
                known = ", ".join(self.rows.column_names)
                raise ValueError(
                    f"the test split has no column '{column}'.{nearest(column, self.rows.column_names)} Its "
                    f"columns: {known}"
                )
        columns = list(named) or [column for column in self._further() if self._has_few_values(column)]
        return {column: self._values(column) for column in columns}

    def _further(self) -> Iterable[str]:
        assert self.rows is not None
        read = set(self.task.columns_read(self.rows, "test"))
        return [column for column in self.rows.column_names if column not in read]

    def _has_few_values(self, column: str) -> bool:
        values = column_of(self.rows, column)
        kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
        return any(kind(values.type) for kind in kinds) and 2 <= pc.count_distinct(values).as_py() <= MOST_VALUES

    def _values(self, column: str) -> list[str]:
        assert self.rows is not None
        kind, values = self.rows.features[column], column_of(self.rows, column).to_pylist()
        names = kind.names if isinstance(kind, ClassLabel) else None
        words = [names[value] if names and value is not None and value >= 0 else str(value) for value in values]
        return [shown(words[number], 60) for number in self.order]


def task_of_run(settings: PruneConfig, checkpoint: Path, report: Report) -> Task:
    """Builds the task of a run from its checkpoint, without metrics.

    Raises:
        ValueError, OSError: If config or processor of the checkpoint cannot be read.
    """
    config = load_config(str(checkpoint))
    kind = TASKS.get(report.task)
    head = loaded_class(report.task, next(iter(config.architectures or []), ""), config)
    processor = load_processor(kind.processor_class, str(checkpoint))
    task = settings.task.model_copy(update={"type": report.task, "metrics": []})
    return build_task(task, processor, config, head or None)


def read_run_data(settings: PruneConfig, task: Task, report: Report) -> RunData:
    """Reads the test split of a run again.

    Args:
        settings: Of the run, with what the user says of the data.
        task: Of the run.
        report: Of the run, which holds the hash of what was read then.

    Raises:
        ValueError: If the data are other ones, or cannot be read.
        OSError: If they are not there.
    """
    if settings.task.dataset.path == "in-memory":
        raise ValueError("the data were given in Python")
    count, seed = settings.task.evaluation_examples, settings.seed
    dataset = load_splits(settings.task, seed)["test"]
    encoded = encode_sample(task, dataset, count, seed)
    if sha256_of_batches(evaluation_batches_of(settings.task, task, encoded, seed)) != report.test_sha256:
        raise ValueError("the data there are not those of the run")
    drawn = task.draws_rows(dataset)
    numbers = np.arange(len(dataset)) if count is None else drawn_rows(len(dataset), count, seed)
    return RunData(task, draw(dataset, count, seed) if drawn else None, encoded, length_order(task, encoded), numbers)


def shown(text: str, longest: int = LONGEST_SHOWN) -> str:
    """Gives the beginning of a text in one line of signs that can be seen."""
    return beginning(one_line(text), longest)


def _in_words(value: Any) -> str:
    """Writes a value of a row; nothing of what is no text and no number, as an image."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {words}" for name, part in value.items() if (words := _in_words(part)))
    if isinstance(value, list):
        return " · ".join(filter(None, map(_in_words, value)))
    return str(value) if isinstance(value, (str, int, float, bool)) else ""
