"""Masked language modelling: predict tokens that were taken out of a text from those on both sides."""

from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
import torch
from datasets import Dataset

from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import NO_TARGET, Readout
from hf_mabprune.tasks.token_task import TokenTask, check_fast, check_padding

TEXTS = ("text", "sentence", "content", "document")
SHARE = 0.15  # of the tokens that are masked (Devlin et al., arXiv 1810.04805, section 3.1)


@TASKS.register("masked_lm")
@dataclass(kw_only=True)
class MaskedLM(TokenTask):
    """Predicts masked tokens from those on both sides. Role: `text`.

    A text is cut into windows of at most `max_length` tokens, 128 by default, each framed as the tokenizer frames a
    text; a text without a token is left out. In each window the mask token takes the place of 15% of the tokens, at
    least one, and loss, KL divergence and metrics count these alone. Which ones is drawn from what the window holds,
    so that all models, runs and seeds are asked the same.
    """

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    pipeline_tag: ClassVar[str | None] = "fill-mask"
    heads: ClassVar[tuple[str, ...]] = ("ForMaskedLM",)
    roles: ClassVar[tuple[str, ...]] = ("text",)
    default_metrics: ClassVar[tuple[str, ...]] = ("perplexity", "token_accuracy")
    metric_inputs: ClassVar[dict[str, str]] = {"losses": "losses", "positions": "positions", "correct": "correct"}
    default_length: ClassVar[int] = 128
    rows_are_examples: ClassVar[bool] = False
    takes_plain_text: ClassVar[bool] = True
    predicts_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_padding(self.processor, self.model_config)
        check_fast(self.processor)
        if self.processor.mask_token_id is None:
            raise ValueError("the tokenizer must have a mask token, got none; use the one that the model came with")
        super().__post_init__()

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists the usual names of a column of text."""
        return [{"text": text} for text in TEXTS]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, and a missing column or values."""
        self.check_texts(dataset, self.find_columns(dataset, split)["text"], split)

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows and masks; columns: what the tokenizer gives for each window, [T], and `labels`, [T], the
        tokens that were masked, -100 elsewhere.

        Raises:
            ValueError: If no text has a token.
        """
        column = self.find_columns(dataset, "data")["text"]
        tokenizer, mask = self.processor, int(self.processor.mask_token_id)
        cut = {"truncation": True, "max_length": self.length, "return_overflowing_tokens": True}

        def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
            encoded = dict(tokenizer(rows[column], **cut, return_special_tokens_mask=True))
            del encoded["overflow_to_sample_mapping"]
            special = [np.array(marks, dtype=bool) for marks in encoded.pop("special_tokens_mask")]
            full = [number for number, marks in enumerate(special) if not marks.all()]
            windows = {name: [values[number] for number in full] for name, values in encoded.items()}
            ids = [np.array(window) for window in windows["input_ids"]]
            masked = [_drawn(own, special[number]) for own, number in zip(ids, full, strict=True)]
            windows["input_ids"] = [np.where(where, mask, own) for own, where in zip(ids, masked, strict=True)]
            windows[LABELS] = [np.where(where, own, NO_TARGET) for own, where in zip(ids, masked, strict=True)]
            return windows

        encoded = dataset.select_columns([column]).map(
            tokenise, batched=True, remove_columns=[column], desc="Tokenising"
        )
        if not len(encoded):
            raise ValueError("texts must have tokens, got none in all rows; choose another slice or column")
        for name in ("input_ids", LABELS):
            self.check_ids(encoded, name)
        return encoded

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs and labels, [B, T] each, padded on the right; labels are -100 where nothing is masked."""
        return self.with_targets(examples)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Takes all positions, logits [B, T, C] and targets [B, T]; what is not masked has no target."""
        return Readout(outputs=logits, targets=batch[LABELS])


def _drawn(ids: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Draws the tokens of a window that are masked, [T] bool, with a seed made of its tokens."""
    places = np.flatnonzero(~special)
    rng = np.random.default_rng(crc32(ids.astype(np.int64).tobytes()))
    masked = np.zeros(len(ids), dtype=bool)
    masked[rng.choice(places, max(1, round(SHARE * len(places))), replace=False)] = True
    return masked
