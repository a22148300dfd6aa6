"""A study of what pruning does to readable units, of a tiny network on small images; as a program, it runs it, so that
a test can kill it.

python -m tests.research.studies.tiny_readable_study DATA OUT
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image

from research.studies.interpretability.protocol import QUICK
from research.studies.interpretability.study import Study
from tests.seeds import moved

PROTOCOL = replace(
    QUICK, seeds=1, rates=(0.5,), width=0.25, base_epochs=30, train=64, probes=48, test=32, tasks=4, references=3,
    extractor_epochs=1,
)  # fmt: skip


def write_images(folder: Path) -> None:
    """Writes small images of two classes, bright ones and dark ones, where the study looks for CIFAR-10."""
    rng = np.random.default_rng(moved(0))
    features = Features({"img": Image(), "label": ClassLabel(names=["dark", "bright"])})
    (folder / "cifar10").mkdir()
    for split, rows in (("train", 120), ("test", 40)):
        labels = np.arange(rows) % 2
        pixels = rng.integers(100, size=(rows, 32, 32, 3)) + 120 * labels[:, None, None, None]
        columns = {"img": list(pixels.astype(np.uint8)), "label": labels.tolist()}
        Dataset.from_dict(columns, features).to_parquet(str(folder / "cifar10" / f"{split}.parquet"))


def tiny_study(data: Path, out: Path) -> Study:
    """Describes it.

    Args:
        data: Folder of images, as `write_images` leaves it.
        out: Folder of the study.
    """
    return Study(data, out, PROTOCOL, image_networks=("tiny",))


if __name__ == "__main__":
    study = tiny_study(Path(sys.argv[1]), Path(sys.argv[2]))
    study.run(study.units())
