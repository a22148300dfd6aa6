"""Text to text: predict every token of a target from a source, which an encoder reads, and the tokens before it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import RowError, column_of
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import NO_TARGET, Readout
from hf_mabprune.tasks.token_task import TokenTask, check_padding

PAIRS = (
    ("source", "target"),
    ("input", "output"),
    ("input", "target"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("question", "answer"),
    ("instruction", "response"),
    ("text", "target"),
)


@TASKS.register("seq2seq")
@dataclass(kw_only=True)
class Seq2Seq(TokenTask):
    """Predicts the tokens of a target text. Roles: `source` and `target`. For encoder-decoders.

    Both texts are framed as the tokenizer does it, which closes a target with its end-of-sequence token, and cut at
    `max_length` tokens, 512 by default or what tokenizer and model can take; `prefix` is put before every source. A
    column of translations is named with its language: `columns: {source: translation.en, target: translation.de}`.

    All tokens of a target count, its end as well, each predicted from the right tokens before it. `token_accuracy` is
    the fraction of them whose largest logit is right; `exact_match` the fraction of examples with all of them right.
    That is what plain greedy decoding would match, end included, though no token is generated: as long as every token
    so far is right, greedy decoding has the same prefix and takes the same largest logit, and one wrong token makes
    both differ. It holds for targets that were not cut; beams, a minimal length or forced tokens, which a generation
    config may ask for, are not part of it.

    Args:
        prefix: Text before every source, such as "summarize: ".
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    pipeline_tag: ClassVar[str] = "text2text-generation"
    heads: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration", "MTModel")
    roles: ClassVar[tuple[str, ...]] = ("source", "target")
    default_metrics: ClassVar[tuple[str, ...]] = ("perplexity", "exact_match", "token_accuracy")
    metric_inputs: ClassVar[dict[str, str]] = {"losses": "losses", "positions": "positions", "correct": "correct"}
    default_length: ClassVar[int] = 512
    rows_are_examples: ClassVar[bool] = True
    forward_options: ClassVar[dict[str, Any]] = {"use_cache": False}
    predicts_tokens: ClassVar[bool] = True

    prefix: str = ""

    def __post_init__(self) -> None:
        if not self.model_config.is_encoder_decoder:
            raise ValueError(
                f"seq2seq needs an encoder-decoder, {self.model_config.model_type} is none; set task.type: causal_lm "
                "or answer for a decoder"
            )
        if self._start is None:
            raise ValueError(
                "the model's config must say decoder_start_token_id, which begins a target, got none; set "
                "model.config.decoder_start_token_id, as in training"
            )
        check_padding(self.processor, self.model_config)
        super().__post_init__()

    @classmethod
    def serves(cls, architecture: str, model_config: PreTrainedConfig | None = None) -> bool:
        """Serves encoder-decoders; heads of the same name that look at images have a decoder alone."""
        two_stacks = model_config is None or model_config.is_encoder_decoder
        return super().serves(architecture, model_config) and two_stacks

    @property
    def _start(self) -> Any:
        """Gives the token that begins what the decoder reads; None where the config names none."""
        return getattr(self.model_config, "decoder_start_token_id", None)

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists the usual pairs."""
        return [dict(zip(self.roles, pair, strict=True)) for pair in PAIRS]

    def find_columns(self, dataset: Dataset, split: str) -> dict[str, str]:
        """Finds the columns, those inside a column of translations included."""
        return super().find_columns(dataset.flatten(), split)

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, and missing columns or values."""
        columns = self.find_columns(dataset, split)
        for role in self.roles:
            self.check_texts(dataset.flatten(), columns[role], split)

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: `input_ids`, [T], and `labels`, [U].

        Raises:
            ValueError: If a source or a target has no token.
        """
        columns = self.find_columns(dataset, "data")
        source, target = (columns[role] for role in self.roles)
        tokenizer, prefix, cut = self.processor, self.prefix, {"truncation": True, "max_length": self.length}

        def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
            sources = tokenizer([prefix + text for text in rows[source]], **cut)["input_ids"]
            return {"input_ids": sources, "labels": tokenizer(text_target=rows[target], **cut)["input_ids"]}

        texts = dataset.flatten().select_columns(sorted({source, target}))
        encoded = texts.map(tokenise, batched=True, remove_columns=texts.column_names, desc="Tokenising")
        for role, column in zip(self.roles, ("input_ids", "labels"), strict=True):
            empty = np.flatnonzero(pc.list_value_length(column_of(encoded, column)).to_numpy() == 0)
            if len(empty):
                message = f"a {role} must have a token, got none in row {{row}}; remove such rows"
                raise RowError(message, int(empty[0]))
            self.check_ids(encoded, column)
        return encoded

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs [B, T] of the encoder, and inputs and labels [B, U] of the decoder, all padded on the right.

        Labels are -100 there. As the model itself would do it, the decoder reads the start token and then the labels,
        one place to the right, with the pad token for -100.
        """
        padding = self.processor.pad_token_id
        sources, targets = ([torch.tensor(example[name]) for example in examples] for name in ("input_ids", "labels"))
        labels = pad_sequence(targets, batch_first=True, padding_value=NO_TARGET)
        counted = labels != NO_TARGET
        before = labels.roll(1, dims=1)
        before[:, 0] = self._start
        return Batch(
            input_ids=pad_sequence(sources, batch_first=True, padding_value=padding),
            attention_mask=pad_sequence([torch.ones_like(ids) for ids in sources], batch_first=True),
            decoder_input_ids=before.masked_fill(before == NO_TARGET, padding),
            decoder_attention_mask=counted.long(),
            labels=labels,
        )

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Takes all positions of the targets, [B, U, C], each beside the token that it predicts."""
        return Readout(outputs=logits, targets=batch["labels"])
