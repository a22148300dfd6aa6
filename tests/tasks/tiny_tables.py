"""A tiny model over rows of a table, its processor, and rows."""

from typing import Any

import pandas as pd
import torch
from torch import nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_mabprune.checkpoints.table_processor import TableProcessor
from tests.seeds import moved

FEATURES: dict[str, list[Any]] = {
    "height": [1.5, None, 1.75, 1.25, 2.0],
    "colour": ["red", "blue", None, "red", "green"],
    "age": [3, 5, 4, 1, 2],
}
CLASSES: dict[str, list[Any]] = {"label": [0, 2, 1, 1, 0], **FEATURES}
NUMBERS: dict[str, list[Any]] = {"label": [0.5, -2.0, 1.25, 1.0, 0.0], **FEATURES}


class TinyForClassification(BertPreTrainedModel):
    """BERT over a row, a position for each feature."""

    main_input_name = "features"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.feature = nn.Linear(1, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        embedded = self.feature(features.to(self.dtype).unsqueeze(-1))
        logits = self.classifier(self.bert(inputs_embeds=embedded).pooler_output)
        return SequenceClassifierOutput(loss=None if labels is None else self.loss(logits, labels), logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels)


class TinyForRegression(TinyForClassification):
    """The same, for numbers."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(logits, labels.reshape(logits.shape).float())


def table_config(**options: Any) -> BertConfig:
    """Two layers; as many features as `table_processor` makes."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    fixed = {"vocab_size": 1, "max_position_embeddings": 8, "num_features": 7}
    return BertConfig(**(sizes | fixed | options))


def table_classifier(**options: Any) -> TinyForClassification:
    """A random classifier in eval mode."""
    torch.manual_seed(moved(0))
    return TinyForClassification(table_config(**({"num_labels": 3} | options))).eval()


def table_regressor(**options: Any) -> TinyForRegression:
    """A random model with one output, a number, in eval mode."""
    torch.manual_seed(moved(0))
    return TinyForRegression(table_config(**({"num_labels": 1} | options))).eval()


def table_processor() -> TableProcessor:
    """The processor of these rows: two numbers, of which one lacks values, and four colours."""
    return TableProcessor.fit(pd.DataFrame(FEATURES))
