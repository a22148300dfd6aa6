"""A frozen extractor of features of small images, trained here without labels (Chen et al. 2020, SimCLR).

Two random views of an image should be nearer to each other than to any view of another image: NT-Xent at temperature
0.5. What a view does not change (which crop, mirror, colours) is what the features leave out.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from hf_mabprune.runtime.files import atomic_folder
from research.models.images import Pictures
from research.models.training import Recipe, train
from research.studies.interpretability.networks import WEIGHTS, tiny
from research.studies.interpretability.training import BATCH, fit, of_epochs

TEMPERATURE = 0.5
PROJECTED = 64  # numbers that views are compared by; the features are those before


@dataclass(frozen=True)
class Extractor:
    """Describes an extractor: a small convolutional network.

    Attributes:
        width: Factor of its 32, 64 and 128 channels; the last are the features.
        epochs: Passes over its training images.
        recipe: How it is trained.
    """

    width: float
    epochs: int
    recipe: Recipe

    def without_labels(self, pictures: Pictures, place: Path) -> nn.Module:
        """Reads or trains the one that sees no label; gives the module from pixels to features."""
        return self._kept(place, PROJECTED, lambda network: contrast(network, pictures, self.epochs, self.recipe))

    def with_labels(self, pictures: Pictures, classes: int, place: Path) -> nn.Module:
        """Reads or trains the one that learns some classes, which the networks of the study never see."""
        return self._kept(place, classes, lambda network: fit(network, pictures, self.epochs, self.recipe))

    def _kept(self, place: Path, outputs: int, learn) -> nn.Module:  # type: ignore[no-untyped-def]
        set_seed(self.recipe.seed)
        network = tiny(outputs, self.width)
        if not place.is_dir():
            learn(network)
            with atomic_folder(place) as work:
                save_model(network, str(work / WEIGHTS))
        load_model(network, str(place / WEIGHTS))
        assert isinstance(network, nn.Sequential)
        return network[:-1].eval()


def contrast(network: nn.Module, pictures: Pictures, epochs: int, recipe: Recipe) -> None:
    """Trains a network, in place, to tell views of one image from those of others."""

    def loss(rows: torch.Tensor, progress: float) -> torch.Tensor:
        pixels = pictures.pixels[rows]
        return nt_xent(network(view(pixels)), network(view(pixels)))

    train(network, len(pictures.labels), loss, of_epochs(recipe, len(pictures.labels), epochs))


def nt_xent(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Gives the mean cross-entropy of finding the other view of each image among all 2B - 1 other views.

    Args:
        one, other: Two views of B images, [B, D].
    """
    views = F.normalize(torch.cat([one, other]), dim=1)
    logits = (views @ views.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(views)).roll(len(one)))


def view(pixels: torch.Tensor) -> torch.Tensor:
    """Crops 25 to 100% of each image, mirrors half of them, changes their channels, makes one in five grey.

    Args:
        pixels: Normalised pixels, [B, 3, S, S].
    """
    count = len(pixels)
    scale = (0.25 + 0.75 * torch.rand(count)).sqrt()
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    centre = (2 * torch.rand(2, count) - 1) * (1 - scale)
    zero = torch.zeros(count)
    rows = torch.stack([torch.stack([scale * mirror, zero, centre[0]]), torch.stack([zero, scale, centre[1]])])
    grid = F.affine_grid(rows.permute(2, 0, 1), list(pixels.shape), align_corners=False)
    seen = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    gain, shift = 0.6 + 0.8 * torch.rand(count, 3, 1, 1), 0.8 * torch.rand(count, 3, 1, 1) - 0.4
    seen = seen * gain + shift
    grey = (torch.rand(count) < 0.2).view(-1, 1, 1, 1)
    return torch.where(grey, seen.mean(1, keepdim=True), seen)


@torch.inference_mode()
def features(extractor: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Gives the features of images, [P, D]."""
    return torch.cat([extractor(part) for part in pixels.split(BATCH)])
