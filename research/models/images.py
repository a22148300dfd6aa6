"""Small images as tensors: read, measured, and changed at random as training sees them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from torch.nn import functional as F


@dataclass(frozen=True)
class Pictures:
    """Holds a split: normalised pixels, [N, 3, 32, 32], and labels, [N]."""

    pixels: torch.Tensor
    labels: torch.Tensor


def image_column(rows: Dataset) -> str:
    """Names the column of images."""
    return next(name for name, feature in rows.features.items() if isinstance(feature, Image))


def statistics(rows: Dataset) -> dict[str, Any]:
    """Measures mean and deviation of every channel, of pixels from 0 to 1."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in rows[image_column(rows)]]) / 255
    return {"image_mean": pixels.mean((0, 1, 2)).tolist(), "image_std": pixels.std((0, 1, 2)).tolist()}


def augmented(pixels: torch.Tensor, mirrored: bool = True) -> torch.Tensor:
    """Shifts every image by up to 4 pixels, mirrors half of them, changes contrast and brightness a little.

    Args:
        pixels: Normalised pixels, [B, 3, S, S]; what a shift uncovers is 0, the mean colour.
        mirrored: Whether any are mirrored.
    """
    count, _, side, _ = pixels.shape
    span = torch.arange(side).expand(count, side)
    down, across = span + torch.randint(9, (count, 1)), span + torch.randint(9, (count, 1))
    if mirrored:
        across = torch.where(torch.rand(count, 1) < 0.5, across.flip(1), across)
    padded = F.pad(pixels, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    moved = padded[torch.arange(count)[:, None, None], down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
    contrast, brightness = torch.rand(2, count, 1, 1, 1, device=pixels.device) * 0.4 - 0.2
    return moved * (1 + contrast) + brightness


def cut_and_mixed(pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pastes a box of another image into every image, and mixes the targets by area (Yun et al. 2019, CutMix).

    Args:
        pixels: Pixels, [B, 3, S, S].
        targets: Probabilities of the classes, [B, C].
    """
    side = pixels.shape[-1]
    half = side * torch.rand(()).sqrt() / 2  # the box's share of the area is uniform
    centre = torch.randint(side, (2,))
    (top, left), (bottom, right) = (centre - half).clamp(0).long(), (centre + half).clamp(max=side).long()
    others = torch.randperm(len(pixels))
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels[others, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / side**2
    return mixed, (1 - share) * targets + share * targets[others]
