"""Similarities of images that scores are made with; each is named in every table.

A similarity says which classes networks are trained on, and gives a number for any two probes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from research.studies.interpretability.extractor import Extractor, features
from research.studies.interpretability.images import Images

HALF = 5  # classes that networks are trained on, where the extractor is trained on the others
PAIRS = 500  # of images at a time


@dataclass(frozen=True)
class Similarity(ABC):
    """Measures how alike any two probes are.

    Attributes:
        extractor: The extractor that is trained, for those that have one.
    """

    extractor: Extractor
    words: ClassVar[str]
    halves: ClassVar[bool] = False  # whether networks are trained on, and looked at with, the first classes alone

    def network_images(self, images: Images) -> Images:
        """Gives the images of networks."""
        return images.of_classes(0, HALF - 1) if self.halves else images

    @abstractmethod
    def matrix(self, images: Images, folder: Path) -> torch.Tensor:
        """Gives the similarity of any two probes of `network_images`, [P, P].

        Args:
            images: All images.
            folder: Folder of trained networks, where the extractor is kept.

        Raises:
            ImportError: If it is another package's, which is not installed.
        """


@dataclass(frozen=True)
class SelfSupervised(Similarity):
    """Cosine of features that were learnt here from the training images without their labels."""

    words = "cosine of features learnt without labels"

    def matrix(self, images: Images, folder: Path) -> torch.Tensor:
        """See `Similarity.matrix`."""
        network = self.extractor.without_labels(images.train, folder / "extractor")
        return cosines(features(network, images.probes.pixels))


@dataclass(frozen=True)
class OtherClasses(Similarity):
    """Cosine of features that were learnt from classes 5 to 9; networks are trained on classes 0 to 4."""

    words = "cosine of features learnt from classes 5 to 9, networks of classes 0 to 4"
    halves = True

    def matrix(self, images: Images, folder: Path) -> torch.Tensor:
        """See `Similarity.matrix`."""
        others = images.of_classes(HALF, len(images.names) - 1)
        network = self.extractor.with_labels(others.train, len(others.names), folder / "extractor-classes")
        return cosines(features(network, self.network_images(images).probes.pixels))


@dataclass(frozen=True)
class DreamSim(Similarity):
    """DreamSim (Fu et al. 2023), which the score was made with, from the package `dreamsim`."""

    words = "DreamSim"

    def matrix(self, images: Images, folder: Path) -> torch.Tensor:
        """See `Similarity.matrix`."""
        dreamsim = _needed("dreamsim").dreamsim
        model, _ = dreamsim(pretrained=True, device="cpu")
        pixels = _unit_pixels(images, 224)
        with torch.inference_mode():
            return cosines(torch.cat([model.embed(part) for part in pixels.split(50)]))


@dataclass(frozen=True)
class Lpips(Similarity):
    """The negative of LPIPS (Zhang et al. 2018, AlexNet), from the package `lpips`."""

    words = "minus LPIPS"

    def matrix(self, images: Images, folder: Path) -> torch.Tensor:
        """See `Similarity.matrix`."""
        model = _needed("lpips").LPIPS(net="alex", verbose=False).eval()
        pixels = 2 * _unit_pixels(images, 64) - 1
        found = torch.zeros(len(pixels), len(pixels))
        first, second = torch.triu_indices(len(pixels), len(pixels), 1)
        with torch.inference_mode():
            for one, other in zip(first.split(PAIRS), second.split(PAIRS), strict=True):
                found[one, other] = -model(pixels[one], pixels[other]).flatten()
        return found + found.T


SIMILARITIES: dict[str, type[Similarity]] = {
    "self_supervised": SelfSupervised,
    "other_classes": OtherClasses,
    "dreamsim": DreamSim,
    "lpips": Lpips,
}


def cosines(found: torch.Tensor) -> torch.Tensor:
    """Gives the cosine of any two rows of [P, D], less their mean row: [P, P]."""
    unit = F.normalize(found - found.mean(0), dim=1)
    return unit @ unit.T


def same_class(similarity: torch.Tensor, labels: torch.Tensor) -> float:
    """Measures the share of probes whose nearest other probe is of their class."""
    nearest = similarity.clone().fill_diagonal_(-torch.inf).argmax(1)
    return (labels[nearest] == labels).float().mean().item()


def _unit_pixels(images: Images, side: int) -> torch.Tensor:
    """Gives the probes as [P, 3, side, side], from 0 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.probe_pixels)).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)


def _needed(name: str) -> Any:
    """Imports a package that a similarity needs."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"--similarity {name} needs the package {name}: pip install {name}") from error
