"""Trains a small vision transformer on CIFAR-10, or on any images of 32 x 32 with class labels.

python -m research.models.vit --data uoft-cs/cifar10 --out runs/models/vit-cifar10
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, set_seed

from research.models.training import Figures, Recipe, command_line, read_split, save, train

CPU = torch.device("cpu")
SIDE = 32
RECIPE = Recipe(steps=9_000, batch_size=64, learning_rate=1e-3, weight_decay=0.05)
SIZES: dict[str, Any] = {
    "patch_size": 4,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 384,
}


@dataclass(frozen=True)
class Pictures:
    """Holds a split: normalised pixels, [N, 3, 32, 32], and labels, [N]."""

    pixels: torch.Tensor
    labels: torch.Tensor


def make(data: str, out: Path, recipe: Recipe = RECIPE, **sizes: Any) -> Figures:
    """Trains the model and saves it.

    Args:
        data: Folder with train.parquet and test.parquet, or a data set of the Hub; one row in twelve of train is held
            out as validation.
        out: Folder of the trained model.
        recipe: How it is trained.
        sizes: Fields of the configuration that differ from `SIZES`.

    Returns:
        What was measured, as in figures.json.
    """
    rows = read_split(data, None, "train").train_test_split(test_size=1 / 12, seed=recipe.seed)
    model, processor, minutes = fit(rows["train"], recipe, **sizes)
    figures: Figures = {"minutes": round(minutes, 1), "steps": recipe.steps, "training_rows": len(rows["train"])}
    for split, others in (("validation", rows["test"]), ("test", read_split(data, None, "test"))):
        figures[split] = {"accuracy": accuracy(model, read(others, processor))}
    save(model, processor, figures, out)
    return figures


def fit(
    rows: Dataset, recipe: Recipe = RECIPE, mirrored: bool = True, device: torch.device = CPU, **sizes: Any
) -> tuple[ViTForImageClassification, ViTImageProcessor, float]:
    """Trains the model on some rows.

    Args:
        rows: Training rows, with an image and `label`.
        recipe: How it is trained.
        mirrored: Whether an image seen in a mirror shows the same, which one of a digit does not.
        device: Where it is trained.
        sizes: Fields of the configuration that differ from `SIZES`.

    Returns:
        The model in evaluation mode, its processor, and the minutes of training.
    """
    set_seed(recipe.seed)
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, **statistics(rows))
    pictures = read(rows, processor)
    pixels, classes = pictures.pixels.to(device), pictures.labels.to(device)
    names = dict(enumerate(rows.features["label"].names))
    labels: dict[str, Any] = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    config = ViTConfig(image_size=SIDE, **labels, **{**SIZES, **sizes})
    # In bfloat16 on a CPU, the backward pass of fused attention takes as long as all the rest of a step.
    config._attn_implementation = "eager"
    model = ViTForImageClassification(config)
    nn.Module.to(model, device)

    def loss(indices: torch.Tensor, progress: float) -> torch.Tensor:
        seen = augmented(pixels[indices], mirrored)
        targets = F.one_hot(classes[indices], len(names)).float()
        if torch.rand(()) < 0.5:
            seen, targets = cut_and_mixed(seen, targets)
        with dropped_patches(model, 0.5 * (1 - progress)):
            logits = model(pixel_values=seen).logits
        return F.cross_entropy(logits.float(), targets, label_smoothing=0.1)

    return model, processor, train(model, len(classes), loss, recipe)


def image_column(rows: Dataset) -> str:
    """Names the column of images."""
    return next(name for name, feature in rows.features.items() if isinstance(feature, Image))


def statistics(rows: Dataset) -> dict[str, Any]:
    """Measures mean and deviation of every channel, of pixels from 0 to 1."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in rows[image_column(rows)]]) / 255
    return {"image_mean": pixels.mean((0, 1, 2)).tolist(), "image_std": pixels.std((0, 1, 2)).tolist()}


def read(rows: Dataset, processor: ViTImageProcessor) -> Pictures:
    """Makes the tensors of a split, with the processor that is saved beside the model."""
    images = [image.convert("RGB") for image in rows[image_column(rows)]]
    return Pictures(processor(images, return_tensors="pt")["pixel_values"], torch.tensor(rows["label"]))


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


@contextmanager
def dropped_patches(model: ViTForImageClassification, share: float) -> Iterator[None]:
    """Leaves a share of the patches out, drawn for each image: faster, and less to overfit (Liu et al. 2022)."""

    def keep_some(module: torch.nn.Module, args: Any, embeddings: torch.Tensor) -> torch.Tensor:
        # [B, 1 + P, D], the class token first
        count, patches, width = len(embeddings), embeddings.shape[1] - 1, embeddings.shape[2]
        kept = torch.rand(count, patches, device=embeddings.device).argsort(1)[:, : patches - int(share * patches)] + 1
        chosen = embeddings.gather(1, kept[..., None].expand(-1, -1, width))
        return torch.cat([embeddings[:, :1], chosen], 1)

    handle = model.vit.embeddings.register_forward_hook(keep_some)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def accuracy(model: ViTForImageClassification, pictures: Pictures) -> float:
    """Measures the share of images that get their class."""
    logits = torch.cat([model(pixel_values=pixels).logits for pixels in pictures.pixels.split(250)])
    return (logits.argmax(-1) == pictures.labels).float().mean().item()


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--data", default="uoft-cs/cifar10", help="folder of parquet files, or Hub data set")
    options = parser.parse_args()
    make(options.data, options.out, replace(RECIPE, seed=options.seed))
