"""Token classification: predict the class of every word of a sentence, such as the entity that it is part of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.columns import RowError, column_of, first_column, full_column, is_list, is_text
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.class_labels import check_classifier, class_lists, new_classes
from hf_mabprune.tasks.readout import NO_TARGET, Readout
from hf_mabprune.tasks.token_task import TokenTask, check_fast, check_padding

WORDS = ("tokens", "words")
TAGS = ("ner_tags", "labels", "tags", "pos_tags")


@TASKS.register("token_classification")
@dataclass(kw_only=True)
class TokenClassification(TokenTask):
    """Predicts the class of every word. Roles: `words`, a list of texts, and `tags`, a list with a class for each.

    Tags are class numbers, or class names that the model's `label2id` has; a column of `ClassLabel`s is translated by
    name. A word is judged by its first token; words that begin beyond `max_length` tokens, 256 by default, or that the
    tokenizer makes nothing of, are not judged.

    `entity_f1` is that of spans, told by names such as B-PER and I-PER: kind, first and last word must be right. A
    class whose name is neither such a one nor O makes each of its words a span.
    """

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    pipeline_tag: ClassVar[str | None] = "token-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForTokenClassification",)
    roles: ClassVar[tuple[str, ...]] = ("words", "tags")
    default_metrics: ClassVar[tuple[str, ...]] = ("entity_f1", "accuracy")
    metric_inputs: ClassVar[dict[str, str]] = {
        "predictions": "predicted",
        "references": "reference",
        "answers": "answers",
    }
    default_length: ClassVar[int] = 256
    rows_are_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_classifier(self.model_config)
        check_padding(self.processor, self.model_config)
        check_fast(self.processor)
        super().__post_init__()

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one class for each name, or for each number up to the largest."""
        return new_classes(dataset, first_column(dataset, "tags", columns, TAGS))

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists all combinations of the usual names."""
        return [{"words": words, "tags": tags} for words in WORDS for tags in TAGS]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, and rows without a class of the head for each word."""
        columns = self.find_columns(dataset, split)
        words = full_column(dataset, columns["words"], split)
        where = f"split '{split}', column '{columns['words']}'"
        if not (is_list(words.type) and is_text(words.type.value_type)):
            raise ValueError(f"{where}: words must be lists of texts, got {words.type}")
        counts = pc.list_value_length(words).to_numpy()
        _, tagged = class_lists(dataset, columns["tags"], split, self.model_config)
        wrong = np.flatnonzero((counts == 0) | (counts != tagged))
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"{where}: each row must have words, and a class for each, got {counts[row]} words and "
                f"{tagged[row]} classes in row {row}; remove such rows"
            )
        if pc.list_flatten(words).null_count:
            raise ValueError(f"{where}: a word has no text; remove such rows")

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: what the tokenizer gives for each, [T], and `labels`, [T].

        Raises:
            ValueError: If none of the words of a row has a token.
        """
        columns = self.find_columns(dataset, "data")
        tokenizer, length = self.processor, self.length
        classes, counts = class_lists(dataset, columns["tags"], "data", self.model_config)
        words = dataset.select_columns([columns["words"]]).rename_column(columns["words"], "words")
        words = words.add_column("tags", np.split(classes, counts.cumsum()[:-1]))

        def tokenise(rows: dict[str, list[Any]]) -> dict[str, Any]:
            encoded = tokenizer(rows["words"], is_split_into_words=True, truncation=True, max_length=length)
            labels = [list(_of_tokens(encoded.word_ids(row), tags)) for row, tags in enumerate(rows["tags"])]
            return {**encoded, LABELS: labels}

        encoded = words.map(tokenise, batched=True, remove_columns=words.column_names, desc="Tokenising")
        bare = np.flatnonzero(_targets_of(encoded) == 0)
        if len(bare):
            raise RowError(
                "a row must have a word with a token, got none in row {row}; remove such rows", int(bare[0])
            )
        self.check_ids(encoded)
        return encoded

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs and labels, [B, T] each, padded on the right; labels are -100 where no word begins."""
        return self.with_targets(examples)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Takes all positions, logits [B, T, C] and targets [B, T]."""
        return Readout(outputs=logits, targets=batch[LABELS])


def _of_tokens(words: list[int | None], tags: list[int]) -> Iterator[int]:
    """Gives the class of each token that begins a word, and no target for the others, [T]."""
    for before, word in zip([None, *words], words, strict=False):
        yield NO_TARGET if word is None or word == before else tags[word]


def _targets_of(encoded: Dataset) -> NDArray[np.int64]:
    """Counts the tokens of each example that have a class, [N]."""
    labels = column_of(encoded, LABELS)
    owners = np.arange(len(labels)).repeat(pc.list_value_length(labels).to_numpy())
    return np.bincount(owners[pc.list_flatten(labels).to_numpy() != NO_TARGET], minlength=len(labels))
