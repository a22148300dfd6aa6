"""What tasks share whose models read token ids: a tokenizer, a longest sequence, and padding that both sides know."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.data.columns import column_of, full_column, is_text
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import NO_TARGET


@dataclass(kw_only=True)
class TokenTask(Task):
    """A task whose examples are texts, which a tokenizer makes into token ids.

    Args:
        processor: Tokenizer of the model.
        max_length: Longest sequence in tokens, or None for the task's default.

    Raises:
        ValueError: As `Task`, and for a length that the model has no positions for.
    """

    processor_class: ClassVar[str] = "AutoTokenizer"
    default_length: ClassVar[int]  # tokens

    processor: PreTrainedTokenizerBase = field(repr=False)
    max_length: int | None = None
    length: int = field(init=False)  # the resolved max_length

    def __post_init__(self) -> None:
        self.length = self.resolve_length(self.default_length)
        super().__post_init__()

    def resolve_length(self, default: int) -> int:
        """Gives `max_length`, or where nobody names one a default, as far as model and tokenizer go.

        Args:
            default: Tokens.

        Raises:
            ValueError: For a length that the model has no positions for.
        """
        positions = max_positions(self.model_config)
        if self.max_length is None:
            return min(default, positions, self.processor.model_max_length)
        if self.max_length > positions:
            raise ValueError(f"max_length must be at most {positions}, the model's positions, got {self.max_length}")
        return self.max_length

    def padded(self, examples: list[dict[str, Any]], apart: Collection[str] = (LABELS,)) -> BatchEncoding:
        """Pads what the tokenizer gave for each example on the right, [B, T] each.

        Args:
            examples: Encoded examples.
            apart: Names of what is not the tokenizer's.
        """
        inputs = [{name: value for name, value in example.items() if name not in apart} for example in examples]
        return self.processor.pad(inputs, padding_side="right", return_tensors="pt")

    def with_targets(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs and labels, [B, T] each, padded on the right; labels are -100 on padding."""
        labels = [torch.tensor(example[LABELS]) for example in examples]
        return Batch(self.padded(examples), labels=pad_sequence(labels, batch_first=True, padding_value=NO_TARGET))

    def check_pair(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, and columns or texts that are missing, where a row has one text or two.

        Args:
            dataset: Data set with the texts.
            split: Name of the split, for messages.

        Raises:
            ValueError: Naming split and column.
        """
        columns = self.find_columns(dataset, split)
        for role in ("text", "text_pair"):
            if role in columns:
                self.check_texts(dataset, columns[role], split)

    def check_texts(self, dataset: Dataset, column: str, split: str) -> None:
        """Refuses a column that does not hold a string in every row, with a ValueError that names the split."""
        texts = full_column(dataset, column, split)
        if not is_text(texts.type):
            raise ValueError(f"split '{split}', column '{column}': texts must be strings, got {texts.type}")

    def check_ids(self, encoded: Dataset, column: str = "input_ids") -> None:
        """Refuses token ids that the model has no embedding for, with a ValueError."""
        vocabulary = self.model_config.get_text_config().vocab_size
        flat = column_of(encoded, column).combine_chunks().flatten()
        while pa.types.is_list(flat.type):  # several sequences a row
            flat = flat.flatten()
        largest = int(np.max(flat.to_numpy(zero_copy_only=False), initial=0))
        if largest >= vocabulary:
            raise ValueError(
                f"token ids must be below {vocabulary}, the model's vocabulary, got {largest}; "
                "use the tokenizer that belongs to the model"
            )


def check_padding(tokenizer: PreTrainedTokenizerBase, model_config: PreTrainedConfig) -> None:
    """Refuses a tokenizer and a model that do not agree on what padding is: decoders read the last token that is none,
    and others count their positions by it.

    Args:
        tokenizer: Tokenizer of the model.
        model_config: Config of the model.

    Raises:
        ValueError: If there is no pad token, or tokenizer, config and vocabulary differ about it.
    """
    config = model_config.get_text_config()
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer must have a pad token to make batches, got none; set tokenizer.pad_token and "
            "model.config.pad_token_id, as in training"
        )
    if config.pad_token_id != tokenizer.pad_token_id:
        raise ValueError(
            f"pad_token_id of model config and tokenizer must be equal, got {config.pad_token_id} and "
            f"{tokenizer.pad_token_id}; set model.config.pad_token_id"
        )
    if config.pad_token_id >= config.vocab_size:
        raise ValueError(
            f"pad_token_id must be below {config.vocab_size}, the model's vocabulary, got {config.pad_token_id}; "
            "resize the model's embeddings, or choose another pad token"
        )


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that does not say which part of a text each token is of, with a ValueError."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"this task needs a fast tokenizer, which knows what each token is made from, got "
            f"{type(tokenizer).__name__}; save the model with a tokenizer.json"
        )


def refuse_encoder(model_config: PreTrainedConfig) -> None:
    """Refuses a language model that attends in both directions, with a ValueError."""
    encoder = model_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if encoder and getattr(model_config, "is_decoder", None) is False:
        raise ValueError(
            f"a language model must not see the tokens that it predicts, but this {model_config.model_type} "
            "attends in both directions; set is_decoder to true in its config if it was trained that way"
        )
