"""What memory depends on. Every part that needs much of it says how much from these sizes, by a function `memory`.

Symbols: T tokens; D hidden; C columns of a projection, F neurons or H * Dh; V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import ArmTable


@dataclass(frozen=True)
class Sizes:
    """The numbers that decide how much memory a run takes.

    Attributes:
        item: Bytes of a number.
        weights: Bytes of the model.
        layers, hidden: Of the model.
        columns: C of every site that has arms.
        vocabulary: V of a language model, else 0.
        batch_tokens: T of the largest calibration batch, padding included, all examples together.
        tokens: The same of all calibration batches.
    """

    item: int
    weights: int
    layers: int
    hidden: int
    columns: tuple[int, ...]
    vocabulary: int
    batch_tokens: int
    tokens: int

    @classmethod
    def of(cls, model: PreTrainedModel, arms: ArmTable, batches: Sequence[dict[str, torch.Tensor]]) -> "Sizes":
        """Takes them from a model, its arms and the calibration batches."""
        lengths = [batch["input_ids"].numel() for batch in batches]
        config = model.config
        sites = [site for site in architecture_of(model).sites(model) if site.kind in arms.kind]
        return cls(
            item=model.dtype.itemsize,
            weights=model.get_memory_footprint(),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            columns=tuple(site.units * site.unit_size for site in sites),
            vocabulary=config.vocab_size if model.get_output_embeddings() else 0,
            batch_tokens=max(lengths),
            tokens=sum(lengths),
        )

    @property
    def squares(self) -> list[int]:
        """Bytes of the second moments of each site, [C, C] float64."""
        return [8 * columns**2 for columns in self.columns]
