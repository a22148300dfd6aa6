"""A plugin: residual MLPs over rows of numbers, a family of its own with a task of its own, in one file.

Nothing of it reads tokens, has attention or a list of positions.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import SiteSpec, Stack, rows
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout


class MLPConfig(PreTrainedConfig):
    """Sizes of an MLP."""

    model_type = "outside_mlp"
    features: int = 6
    width: int = 16
    inner: int = 40
    blocks: int = 2


class Block(nn.Module):
    """x + W2 relu(W1 x)."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(config.width, config.inner), nn.Linear(config.inner, config.width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(self.up(hidden).relu())


class MLPPreTrainedModel(PreTrainedModel):
    """What the models share."""

    config_class = MLPConfig
    base_model_prefix = "mlp"
    main_input_name = "features"


class MLPModel(MLPPreTrainedModel):
    """Blocks over an embedding of the features."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Linear(config.features, config.width)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.blocks)])
        self.post_init()

    def forward(self, features: torch.Tensor) -> BaseModelOutput:
        hidden = self.embedding(features)
        for block in self.blocks:
            hidden = block(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


class MLPForSequenceClassification(MLPPreTrainedModel):
    """Classes of a row."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.mlp = MLPModel(config)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, features: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.classifier(self.mlp(features).last_hidden_state))


AutoConfig.register("outside_mlp", MLPConfig, exist_ok=True)
AutoModel.register(MLPConfig, MLPModel, exist_ok=True)
AutoModelForSequenceClassification.register(MLPConfig, MLPForSequenceClassification, exist_ok=True)


@ARCHITECTURES.register("outside_mlp")
class MLP(Architecture):
    """Declares the neurons inside a block."""

    stacks = (Stack("blocks", (SiteSpec("neuron", "down", rows("up"), units="inner", feeds=("up",)),)),)


@TASKS.register("rows_of_numbers")
@dataclass(kw_only=True)
class RowsOfNumbers(Task):
    """Predicts the class of a row of numbers. Roles: `features`, a list of numbers, and `label`."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    processor_class: ClassVar[str | None] = None
    pipeline_tag: ClassVar[str] = "tabular-classification"
    heads: ClassVar[tuple[str, ...]] = ("MLPForSequenceClassification",)
    roles: ClassVar[tuple[str, ...]] = ("features", "label")
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    metric_inputs: ClassVar[dict[str, str]] = {"predictions": "predicted", "references": "reference"}
    rows_are_examples: ClassVar[bool] = True
    asked_for_by_name: ClassVar[bool] = True

    def usual_columns(self) -> list[dict[str, str]]:
        return [{"features": "features", "label": "label"}]

    def check(self, dataset: Dataset, split: str) -> None:
        self.find_columns(dataset, split)

    def encode(self, dataset: Dataset) -> Dataset:
        columns = self.find_columns(dataset, "data")
        encoded = dataset.select_columns([columns["features"], columns["label"]])
        return encoded.rename_columns({columns["features"]: "features", columns["label"]: "labels"})

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        features = torch.tensor(np.array([example["features"] for example in examples]), dtype=torch.float32)
        return Batch(features=features, labels=torch.tensor([example["labels"] for example in examples]))

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        return Readout(outputs=logits[:, None], targets=batch["labels"][:, None])
