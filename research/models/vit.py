"""Trains a small vision transformer on CIFAR-10, or on any images of 32 x 32 with class labels.

python -m research.models.vit --data uoft-cs/cifar10 --out runs/models/vit-cifar10
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, set_seed

from research.models.images import Pictures, augmented, cut_and_mixed, image_column, statistics
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


def read(rows: Dataset, processor: ViTImageProcessor) -> Pictures:
    """Makes the tensors of a split, with the processor that is saved beside the model."""
    images = [image.convert("RGB") for image in rows[image_column(rows)]]
    return Pictures(processor(images, return_tensors="pt")["pixel_values"], torch.tensor(rows["label"]))


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
