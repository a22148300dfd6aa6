"""The images of the study: drawn once, by the seed of the protocol, as normalised tensors.

Symbols: N images; S = 32 pixels a side.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from research.models.images import Pictures, image_column, statistics

DRAW = 0  # seed of the draw of all rows: every seed of the study sees the same ones


@dataclass(frozen=True)
class Images:
    """Holds the images of a run.

    Attributes:
        train: Images that networks and the extractor are trained on.
        probes: Images that units are looked at with, from the training file and in no other part.
        test: Images that accuracy is measured on.
        probe_pixels: The probes as they are seen, [N, S, S, 3], 0 to 255.
        names: Names of the classes.
        mean, deviation: What pixels were normalised with, of each channel of pixels from 0 to 1, [3].
    """

    train: Pictures
    probes: Pictures
    test: Pictures
    probe_pixels: np.ndarray
    names: tuple[str, ...]
    mean: torch.Tensor
    deviation: torch.Tensor

    def of_classes(self, first: int, last: int) -> "Images":
        """Gives the images of some classes, from `first` to `last`, numbered from 0."""

        def rows(part: Pictures) -> torch.Tensor:
            return (part.labels >= first) & (part.labels <= last)

        def chosen(part: Pictures) -> Pictures:
            return Pictures(part.pixels[rows(part)], part.labels[rows(part)] - first)

        return replace(
            self,
            train=chosen(self.train),
            probes=chosen(self.probes),
            test=chosen(self.test),
            probe_pixels=self.probe_pixels[rows(self.probes).numpy()],
            names=self.names[first : last + 1],
        )


def read_images(folder: Path, train: int, probes: int, test: int) -> Images:
    """Reads train.parquet and test.parquet, which have a column of images and `label`.

    Args:
        folder: Folder of the two files.
        train, probes: Rows drawn from train.parquet.
        test: Rows drawn from test.parquet.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file has fewer rows than are asked for.
    """
    rows = _drawn(folder / "train.parquet", train + probes)
    parts = rows.select(range(train)), rows.select(range(train, train + probes)), _drawn(folder / "test.parquet", test)
    seen = statistics(parts[0])
    mean, deviation = (torch.tensor(seen[name], dtype=torch.float32) for name in ("image_mean", "image_std"))

    def pictures(pixels: np.ndarray, labels: list[int]) -> Pictures:
        scaled = (torch.from_numpy(pixels).float() / 255 - mean) / deviation
        return Pictures(scaled.permute(0, 3, 1, 2), torch.tensor(labels))

    raw = [_pixels(part) for part in parts]
    made = [pictures(pixels, list(part["label"])) for pixels, part in zip(raw, parts, strict=True)]
    return Images(made[0], made[1], made[2], raw[1], tuple(rows.features["label"].names), mean, deviation)


def _drawn(path: Path, count: int) -> Dataset:
    """Draws rows of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: --data must hold cifar10/ with train.parquet and test.parquet")
    rows = Dataset.from_parquet(str(path))
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} rows, and {count} are asked for")
    return rows.shuffle(seed=DRAW).select(range(count))


def _pixels(rows: Dataset) -> np.ndarray:
    """Makes [N, S, S, 3] of a column of images."""
    return np.stack([np.asarray(image.convert("RGB")) for image in rows[image_column(rows)]])
