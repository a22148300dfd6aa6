"""Image classifiers of the Hub as networks of the study."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, set_seed

from research.studies.interpretability.images import Images


class HubClassifier(nn.Module):
    """Gives the logits of the classes of the study's images, from pixels as the study's other networks take them.

    Args:
        model: Image classifier of transformers.
        processor: Its image processor.
        images: Images of the run.

    Raises:
        ValueError: If the classifier lacks a class of the images.
    """

    def __init__(self, model: PreTrainedModel, processor: object, images: Images) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        labels = {str(name).lower(): int(place) for place, name in (model.config.id2label or {}).items()}
        if missing := [name for name in images.names if name.lower() not in labels]:
            raise ValueError(
                f"the image model has no class {missing[0]!r}; its {len(labels)} classes begin with "
                f"{next(iter(labels))!r}: name a classifier of {', '.join(images.names)}"
            )
        self.classes = [labels[name.lower()] for name in images.names]
        self.mean, self.deviation = images.mean, images.deviation

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Gives [B, C] of normalised pixels, [B, 3, S, S], which its own processor then sizes and normalises."""
        seen = 255 * (pixels.permute(0, 2, 3, 1) * self.deviation + self.mean)
        raw = list(seen.round().clamp(0, 255).to(torch.uint8).numpy())
        assert callable(self.processor)
        logits: torch.Tensor = self.model(**self.processor(images=raw, return_tensors="pt")).logits
        return logits[:, self.classes]


@dataclass(frozen=True)
class HubBase:
    """Describes a network that is there already.

    Attributes:
        name: Folder or Hub name of an image classifier of the classes of the images.
    """

    name: str

    def fresh(self, images: Images, seed: int) -> nn.Module:
        """Makes it with fresh weights, ready for evaluation."""
        set_seed(seed)
        return self._classifier(
            AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(self.name)), images
        )

    def trained(self, images: Images, seed: int, folder: Path) -> nn.Module:
        """Reads it; there is one, whatever the seed.

        Args:
            images: Images of the run.
            seed: Seed.
            folder: Folder of trained networks, which it is none of.
        """
        return self._classifier(
            AutoModelForImageClassification.from_pretrained(self.name, dtype=torch.float32), images
        )

    def _classifier(self, model: PreTrainedModel, images: Images) -> nn.Module:
        return HubClassifier(model, AutoImageProcessor.from_pretrained(self.name), images).eval()
