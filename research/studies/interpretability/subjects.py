"""What the study prunes and looks at: a network with its data, behind one interface for images and texts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from research.models.training import Recipe
from research.studies.interpretability.activations import activations
from research.studies.interpretability.hub import HubBase
from research.studies.interpretability.images import Images
from research.studies.interpretability.networks import Base
from research.studies.interpretability.training import BATCH, accuracy, fit


class Subject(ABC):
    """A network with what it is trained, measured and looked at on.

    Attributes:
        similarity_name: Which similarity of inputs scores are made with.
        similarity: Similarity of any two probes, [P, P].
    """

    similarity_name: str
    similarity: torch.Tensor

    @abstractmethod
    def network(self, seed: int) -> nn.Module:
        """Gives a copy of the trained network, not pruned."""

    @abstractmethod
    def untrained(self, seed: int) -> nn.Module:
        """Gives the network with fresh weights."""

    @abstractmethod
    def train(self, network: nn.Module, epochs: float, seed: int) -> None:
        """Trains a network further, in place."""

    @abstractmethod
    def accuracy(self, network: nn.Module) -> float:
        """Measures a network on test inputs."""

    @abstractmethod
    def activations(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Gives what the probes do to its units, by module, [P, U]."""


@dataclass
class ImageSubject(Subject):
    """A network for small images.

    Attributes:
        base: What it is.
        images: Images.
        folder: Folder of trained networks.
        recipe: How it is trained further; its seed is that of the study.
        similarity_name, similarity: See `Subject`.
    """

    base: Base | HubBase
    images: Images
    folder: Path
    recipe: Recipe
    similarity_name: str
    similarity: torch.Tensor

    def network(self, seed: int) -> nn.Module:
        """See `Subject.network`."""
        return self.base.trained(self.images, seed, self.folder)

    def untrained(self, seed: int) -> nn.Module:
        """See `Subject.untrained`."""
        return self.base.fresh(self.images, seed)

    def train(self, network: nn.Module, epochs: float, seed: int) -> None:
        """See `Subject.train`."""
        fit(network, self.images.train, epochs, replace(self.recipe, seed=seed))

    def accuracy(self, network: nn.Module) -> float:
        """See `Subject.accuracy`."""
        return accuracy(network, self.images.test)

    def activations(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """See `Subject.activations`."""
        return activations(network, self.images.probes.pixels.split(BATCH), network)
