"""The networks of the study: made by name, trained once for each seed, and kept."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, set_seed

from hf_mabprune.runtime.files import atomic_folder
from research.models.training import Recipe
from research.studies.interpretability.googlenet import googlenet
from research.studies.interpretability.images import Images
from research.studies.interpretability.training import accuracy, fit

WEIGHTS, FIGURES = "network.safetensors", "figures.json"


class Logits(nn.Module):
    """Gives the logits of an image classifier of transformers, from pixels alone.

    Args:
        model: The classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Gives [B, C] of [B, 3, S, S]."""
        logits: torch.Tensor = self.model(pixel_values=pixels).logits
        return logits


def vit(classes: int, width: float = 1.0) -> nn.Module:
    """Makes a small vision transformer over patches of 4 x 4 pixels: six layers of 128 at width 1."""
    size = round(128 * width)
    sizes: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": size,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 3 * size,
        "num_labels": classes,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = ViTConfig(**sizes)
    config._attn_implementation = "eager"
    return Logits(ViTForImageClassification(config))


def tiny(classes: int, width: float = 1.0) -> nn.Module:
    """Makes a convolutional network of three layers, for tests and as the extractor's body."""
    channels = [3, *(round(size * width) for size in (32, 64, 128))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


MAKERS: dict[str, Callable[[int, float], nn.Module]] = {"googlenet": googlenet, "vit": vit, "tiny": tiny}


@dataclass(frozen=True)
class Base:
    """Describes a network before anything is pruned.

    Attributes:
        name: One of `MAKERS`.
        width: Factor of its channels.
        epochs: Passes over the training images.
        recipe: How it is trained; its seed is that of the study.
    """

    name: str
    width: float
    epochs: int
    recipe: Recipe

    def fresh(self, images: Images, seed: int) -> nn.Module:
        """Makes it with fresh weights, ready for evaluation."""
        set_seed(seed)
        return MAKERS[self.name](len(images.names), self.width).eval()

    def trained(self, images: Images, seed: int, folder: Path) -> nn.Module:
        """Reads it, or trains it where it is not there yet.

        Args:
            images: Images of the run.
            seed: Seed of weights and of training.
            folder: Folder of all trained networks.
        """
        place = folder / f"{self.name}-{seed}"
        network = self.fresh(images, seed)
        if not place.is_dir():
            started = time.perf_counter()
            fit(network, images.train, self.epochs, replace(self.recipe, seed=seed))
            figures: dict[str, Any] = {"accuracy": accuracy(network, images.test)}
            figures["seconds"] = round(time.perf_counter() - started, 1)
            with atomic_folder(place) as work:
                save_model(network, str(work / WEIGHTS))
                (work / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        load_model(network, str(place / WEIGHTS))
        return network
