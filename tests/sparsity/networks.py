"""Networks that take zeros: tiny ones of transformers, and a small convolutional one, each with a batch and a loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tests.seeds import moved
from tests.tiny_models import tiny_model

HEADS = {
    "bert": "AutoModelForSequenceClassification",
    "albert": "AutoModelForSequenceClassification",
    "gpt2": "AutoModelForCausalLM",
    "vit": "AutoModelForImageClassification",
}
NETWORKS = (*HEADS, "convolutions")


def network(name: str) -> nn.Module:
    """A tiny model, in evaluation mode."""
    if name in HEADS:
        return tiny_model(name, HEADS[name])
    torch.manual_seed(moved(1))
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10), nn.Linear(10, 2)).eval()


def batch_for(model: nn.Module) -> dict[str, Any]:
    """Eight examples; of a network of no library an input and labels."""
    generator = torch.Generator().manual_seed(moved(2))
    labels = torch.arange(8) % 2
    if not isinstance(model, PreTrainedModel):
        return {"input": torch.randn(8, 3, 6, 6, generator=generator), "labels": labels}
    if model.main_input_name == "pixel_values":
        size, channels = model.config.image_size, model.config.num_channels
        return {"pixel_values": torch.randn(8, channels, size, size, generator=generator), "labels": labels}
    ids = torch.randint(3, 16, (8, 7), generator=generator)
    return {"input_ids": ids, "labels": ids.clone() if type(model).__name__.endswith("LMHeadModel") else labels}


def loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The mean cross-entropy."""
    if isinstance(model, PreTrainedModel):
        return model(**batch).loss
    return nn.functional.cross_entropy(model(batch["input"]), batch["labels"])


def trainer(steps: int = 3) -> Callable[[nn.Module, float], None]:
    """Gives a training of so many steps an epoch, by momentum and with weight decay, each of which moves weights that
    get no gradient."""

    def train(model: nn.Module, epochs: float) -> None:
        batch = batch_for(model)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(round(epochs * steps)):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        model.eval()

    return train
