"""What tasks share that ask a decoder for tokens: its head, the shift by one, and padding that no token sees."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding

from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.token_task import TokenTask, refuse_encoder


@dataclass(kw_only=True)
class DecoderTask(TokenTask):
    """A task whose models predict tokens from those before them.

    Raises:
        ValueError: As `TokenTask`, and for a model that attends in both directions.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    pipeline_tag: ClassVar[str | None] = "text-generation"
    heads: ClassVar[tuple[str, ...]] = ("ForCausalLM", "LMHeadModel")
    default_metrics: ClassVar[tuple[str, ...]] = ("perplexity",)
    metric_inputs: ClassVar[dict[str, str]] = {"losses": "losses", "positions": "positions"}
    forward_options: ClassVar[dict[str, Any]] = {"use_cache": False}
    predicts_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_encoder(self.model_config)
        super().__post_init__()

    def padded(self, examples: list[dict[str, Any]], apart: Collection[str] = (LABELS,)) -> BatchEncoding:
        """See `TokenTask.padded`. The pad token, which many tokenizers of decoders lack, is token 0: none sees what
        stands to its right."""
        names = [name for name in examples[0] if name not in apart]
        inputs = {name: [torch.tensor(example[name]) for example in examples] for name in names}
        inputs["attention_mask"] = [torch.ones_like(ids) for ids in inputs["input_ids"]]
        return BatchEncoding({name: pad_sequence(rows, batch_first=True) for name, rows in inputs.items()})

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Takes all positions but the last, [B, T, C] -> [B, T - 1, C]; their targets are the tokens that follow."""
        return Readout(outputs=logits[:, :-1], targets=batch[LABELS][:, 1:])
