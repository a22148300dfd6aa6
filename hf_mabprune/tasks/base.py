"""The contract of a task: how a data set becomes batches, what a model's logits say about them, and its metrics.

All that pruning knows of a model's purpose goes through here: a search asks a task for the losses of a batch and never
knows whether classes, numbers or words are predicted. `lookup.py` finds the task of a model.

Symbols: B examples in a batch, N in a split; T tokens; P positions whose logits may count; C classes or vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.data.columns import columns_in_words
from hf_mabprune.registry import Registry, nearest
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.head_readout import HeadReadout
from hf_mabprune.tasks.metrics import load_metric, measure
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.scores import Scores
from hf_mabprune.tasks.vocabulary import large_head, without_head

MOST_LOGITS = 2**24  # that are compared number by number, where the vocabulary is large

TASKS: Registry[type["Task"]] = Registry("task", "hf_mabprune.tasks")


@dataclass(kw_only=True)
class Task(ABC):
    """One kind of task, bound to a model's processor and config. Everything that needs no data is checked here.

    A kind is a subclass in a file of its own. It says which heads it is for and which columns it reads, and has
    `check`, `encode`, `collate` and `read`, which lead from rows to logits with targets.

    Args:
        processor: What makes rows into inputs of the model: its tokenizer, image processor or table processor.
        model_config: Config of the model: its classes, positions and vocabulary.
        columns: Role -> column name in the data set; missing roles are found among the usual names.
        metrics: Names of metrics, the main one first; none means the task's own. Names that are unknown here go to
            `evaluate.load`.

    Raises:
        ValueError: For an unknown role, a metric that does not exist or does not fit the task, or a head that the task
            cannot serve.
    """

    auto_class: ClassVar[str]  # e.g. "AutoModelForSequenceClassification"
    processor_class: ClassVar[str | None]  # "AutoTokenizer", "AutoImageProcessor" or "TableProcessor", or none at all
    pipeline_tag: ClassVar[str | None] = None  # what the Hub calls it, where it has a name for it
    library: ClassVar[str] = "transformers"  # that a checkpoint is made for
    tags: ClassVar[tuple[str, ...]] = ()  # further ones of a card
    heads: ClassVar[tuple[str, ...]]  # how the names of the model classes end that this task is for
    roles: ClassVar[tuple[str, ...]]  # what columns are for, e.g. "text" and "label"
    default_metrics: ClassVar[tuple[str, ...]]  # the main one first
    metric_inputs: ClassVar[dict[str, str]]  # input of a metric -> attribute of `Scores`
    rows_are_examples: ClassVar[bool]  # whether an encoded example is one row of the data set
    takes_plain_text: ClassVar[bool] = False  # whether rows need a text alone, so that the sample text will do
    batches_are_large: ClassVar[bool] = False  # whether those of evaluation are made anew each time they are read
    reads_one_position: ClassVar[bool] = False  # whether the logits of a sequence come from one position
    predicts_classes: ClassVar[bool] = True  # else numbers
    has_loss: ClassVar[bool] = True  # whether the data say what is right; else it is what the dense model says
    loss_name: ClassVar[str] = "cross-entropy in nats"
    predicts_tokens: ClassVar[bool] = False  # whether each counted position is a token that the model's head predicts
    refits_read_more: ClassVar[bool] = False  # whether refits gain by examples beside those of choices, as of tokens
    asked_for_by_name: ClassVar[bool] = False  # whether a model is never taken for it without task.type
    forward_options: ClassVar[dict[str, Any]] = {}  # keyword arguments of every forward pass beside the inputs

    processor: Processor = field(repr=False)
    model_config: PreTrainedConfig = field(repr=False)
    columns: dict[str, str] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for role in self.columns:
            if role not in self.roles:
                known = ", ".join(self.roles)
                raise ValueError(f"task has no column role '{role}'.{nearest(role, self.roles)} Its roles: {known}")
        self.metrics = list(self.metrics or self.default_metrics)
        given = self.metric_inputs, self.answer_classes, self.predicts_classes, self.class_names
        self._loaded = {name: load_metric(name, *given) for name in self.metrics}
        self._rehearse()

    @classmethod
    def serves(cls, architecture: str, model_config: PreTrainedConfig | None = None) -> bool:
        """Tells whether a model is for this task where nobody names one.

        Args:
            architecture: Name of the model class.
            model_config: Config of the model, where it is at hand.
        """
        return not cls.asked_for_by_name and architecture.endswith(cls.heads)

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives the config fields of a new head that fits the labels of a data set, for fine-tuning.

        Args:
            dataset: Data that the head is trained on.
            columns: Role -> column, as in `Task`.

        Raises:
            ValueError: If the labels fit no head.
        """
        return {}

    def rehearsal(self) -> Scores:
        """Makes scores like those of a split, for trying metrics out: one example a class, all of them right."""
        classes = np.arange(self.answer_classes)
        ones, one_each = np.ones(len(classes)), np.ones_like(classes)
        return Scores(ones, one_each, classes, classes, ones, one_each)

    def _rehearse(self) -> None:
        """Runs every metric once, so that one that cannot work stops the run before it starts."""
        results = self.compute_metrics(self.rehearsal())
        if self.main_metric not in results:
            raise ValueError(
                f"the first metric must give one number, '{self.main_metric}' gives {', '.join(results)}; "
                "put another one first"
            )

    @property
    def classes(self) -> int:
        """Counts the classes of the model's head."""
        return int(self.model_config.num_labels or 0)

    @property
    def answer_classes(self) -> int:
        """Counts the classes that an answer may be, among which metrics are computed."""
        return self.classes

    @property
    def class_names(self) -> list[str]:
        """Lists the names that the model's config has for its classes, in their order."""
        names: dict[Any, Any] = self.model_config.id2label or {}
        return [str(names.get(number, number)) for number in range(self.classes)]

    @property
    def keeps_predictions(self) -> bool:
        """Tells whether metrics see predictions: what a language model says of every token is not kept."""
        return "predicted" in self.metric_inputs.values()

    @property
    def main_metric(self) -> str:
        """Names the first metric: its key in `compute_metrics`."""
        return self.metrics[0]

    @property
    def greater_is_better(self) -> bool:
        """Gives the direction of the main metric. Those from the Hub do not say theirs: greater counts as better."""
        return bool(getattr(self._loaded[self.main_metric], "greater_is_better", True))

    @abstractmethod
    def usual_columns(self) -> list[dict[str, str]]:
        """Lists role -> column for the names that data sets usually have, the preferred ones first."""

    def find_columns(self, dataset: Dataset, split: str) -> dict[str, str]:
        """Finds the columns of a data set, role -> column.

        Args:
            dataset: Data set to look at.
            split: Name of its split, for messages.

        Raises:
            ValueError: If the split is empty, a column that was asked for is missing, or none of the usual names is
                there.
        """
        if not len(dataset):
            raise ValueError(f"split '{split}' must not be empty, got 0 rows; choose another slice")
        present = columns_in_words(dataset)
        for role, column in self.columns.items():
            if column not in dataset.column_names:
                raise ValueError(
                    f"split '{split}' has no column '{column}' (role {role})."
                    f"{nearest(column, dataset.column_names)} Its columns: {present}"
                )
        for usual in self.usual_columns():
            columns = usual | self.columns
            if all(column in dataset.column_names for column in columns.values()):
                return columns
        roles = min(self.usual_columns(), key=len, default=self.roles)
        needed = ", ".join(f"{role}: ..." for role in self.roles if role in roles and role not in self.columns)
        raise ValueError(
            f"split '{split}' has none of the usual columns; set task.columns to {{{needed}}}. Its columns: {present}"
        )

    def columns_read(self, dataset: Dataset, split: str) -> list[str]:
        """Names all columns of a data set that the task reads; arguments and errors as those of `find_columns`."""
        columns = self.find_columns(dataset, split)
        return [columns[role] for role in self.roles if role in columns]

    @abstractmethod
    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses missing columns, empty data and labels that do not fit the head; the ValueError names the split."""

    def draws_rows(self, dataset: Dataset) -> bool:
        """Tells whether an encoded example is one row of a data set, where that depends on its columns."""
        return self.rows_are_examples

    def targets(self, dataset: Dataset, split: str) -> NDArray[Any] | None:
        """Gives what the model is to say of each row, class numbers [N] or numbers, [N] or [N, outputs]; None where
        that is neither, or means something else in every row."""
        return None

    @property
    def compares_with_dense(self) -> bool:
        """Tells whether a metric compares with the dense model, so that it says nothing of a model alone."""
        return False

    def side_files(self) -> dict[str, str]:
        """Gives the files that a checkpoint has beside model and processor: name below its folder -> text."""
        return {}

    @abstractmethod
    def encode(self, dataset: Dataset) -> Dataset:
        """Makes rows into examples that are ready for `collate`."""

    @abstractmethod
    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes a batch of model inputs plus `labels`, on the CPU: of texts [B, T] each, padded ([B, choices, T] where
        the head chooses among several sequences)."""

    @abstractmethod
    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Leads from the model's logits on `batch` (the states of its tokens, where it has no head) to those that
        count, [B, P, C], as views where possible."""

    def logits(self, outputs: Any) -> torch.Tensor:
        """Takes what `read` is given from the outputs of a model: the first of them."""
        return outputs[0]

    def lengths(self, encoded: Dataset) -> NDArray[np.int64]:
        """Counts the tokens of each encoded example, or of the longest of its sequences, [N]; zeros without tokens."""
        if "input_ids" not in encoded.column_names:
            return np.zeros(len(encoded), dtype=np.int64)
        ids = encoded["input_ids"]
        return np.array([max(map(len, row)) if isinstance(row[0], list) else len(row) for row in ids], dtype=np.int64)

    def inputs(self, batch: Batch) -> Batch:
        """Gives the arguments of a forward pass: without the labels, so that the model computes no loss of its own."""
        return Batch((name, tensor) for name, tensor in batch.items() if name != LABELS)

    def inputs_with_labels(self, batch: Batch) -> Batch:
        """Gives the arguments of a forward pass that computes the model's own loss."""
        return batch

    def few_inputs(self, model: PreTrainedModel, batch: Batch) -> Batch:
        """Gives inputs of forward passes whose logits are all looked at, on the model's device: those of a batch; of a
        large vocabulary the first tokens of the first examples."""
        inputs = self.inputs(batch.to(model.device))
        head = large_head(model) if self.predicts_tokens else None
        if head is None:
            return inputs
        positions = max(1, MOST_LOGITS // len(head.weight))
        length = min(positions, inputs.length)
        return Batch((name, tensor[: max(1, positions // length), :length]) for name, tensor in inputs.items())

    def readout(self, model: PreTrainedModel, batch: Batch) -> Readout:
        """Runs one forward pass of `model` on `batch`, which must be on the model's device. Modes are the caller's."""
        return self.run(model, batch)[0]

    def run(self, model: nn.Module, batch: Batch, **options: Any) -> tuple[Readout, Any]:
        """Runs one forward pass and gives what it says, and all outputs of the model.

        Where the model is a language model of a large vocabulary, `outputs.logits` are the hidden states that its head
        would be given: the head stays out of the pass.

        Args:
            options: More keyword arguments of the forward pass.
        """
        inputs = {**self.inputs(batch), **self.forward_options, **options}
        if self.predicts_tokens and (found := without_head(model, inputs)):
            outputs, head = found
            readout = self.read(outputs.logits, batch)
            return HeadReadout(readout.outputs, readout.targets, head), outputs
        outputs = model(**inputs)
        return self.read(self.logits(outputs), batch), outputs

    def compute_metrics(self, scores: Scores) -> dict[str, float]:
        """Computes the metrics of a whole split, name -> value. One with several values gives `name.key` for each."""
        results: dict[str, float] = {}
        for name, metric in self._loaded.items():
            inputs = {given: getattr(scores, attribute) for given, attribute in self.metric_inputs.items()}
            results |= measure(name, metric, inputs)
        return results
