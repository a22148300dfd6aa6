"""Trains the networks of the study, whole epochs at a time, and measures them."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from research.models.images import Pictures, augmented
from research.models.training import Recipe, train

BATCH = 250  # images a forward pass where nothing is trained


def fit(network: nn.Module, pictures: Pictures, epochs: float, recipe: Recipe) -> None:
    """Trains a network in place, and leaves it ready for evaluation; of no epochs, nothing happens.

    Args:
        network: Module from pixels, [B, 3, S, S], to logits, [B, C].
        pictures: Training images.
        epochs: Passes over them.
        recipe: How it is trained; its steps follow from the epochs.
    """
    if epochs:
        set_seed(recipe.seed)

        def loss(rows: torch.Tensor, progress: float) -> torch.Tensor:
            seen = augmented(pictures.pixels[rows]).contiguous(memory_format=torch.channels_last)
            return F.cross_entropy(network(seen).float(), pictures.labels[rows])

        # Faster by half on a CPU; the stubs of torch do not know the call.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train(network, len(pictures.labels), loss, of_epochs(recipe, len(pictures.labels), epochs))
    network.eval()


def of_epochs(recipe: Recipe, rows: int, epochs: float) -> Recipe:
    """Gives a recipe the steps of so many passes over rows, at least one."""
    return replace(recipe, steps=max(1, round(epochs * (rows // min(recipe.batch_size, rows)))))


@torch.inference_mode()
def accuracy(network: nn.Module, pictures: Pictures) -> float:
    """Measures the share of images that get their class."""
    found = torch.cat([network(pixels).argmax(-1) for pixels in pictures.pixels.split(BATCH)])
    return (found == pictures.labels).float().mean().item()
