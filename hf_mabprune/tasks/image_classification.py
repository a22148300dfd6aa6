"""Single-label classification of an image."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pyarrow.compute as pc
import torch
from datasets import Dataset, Image
from numpy.typing import NDArray
from transformers import BaseImageProcessor

from hf_mabprune.data.columns import RowError, first_column, full_column
from hf_mabprune.errors import in_words
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.class_labels import check_classifier, class_numbers, new_classes
from hf_mabprune.tasks.readout import Readout

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of PIL, by the channels that a model reads


@TASKS.register("image_classification")
@dataclass(kw_only=True)
class ImageClassification(Task):
    """Predicts the class of an image. Roles: `image` and `label`.

    Images are of the Image feature of `datasets`, of any size and mode: they get the channels that the model reads
    (grey ones become RGB), and go through the model's image processor each time a batch of them is made, so that a
    large split never lies in memory as pixels. Labels are class numbers, or class names that the model's `label2id`
    has; a `ClassLabel` column whose names `label2id` has is translated by name.
    """

    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    processor_class: ClassVar[str] = "AutoImageProcessor"
    pipeline_tag: ClassVar[str] = "image-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForImageClassification",)
    roles: ClassVar[tuple[str, ...]] = ("image", "label")
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    metric_inputs: ClassVar[dict[str, str]] = {"predictions": "predicted", "references": "reference"}
    rows_are_examples: ClassVar[bool] = True
    reads_one_position: ClassVar[bool] = True
    batches_are_large: ClassVar[bool] = True

    processor: BaseImageProcessor = field(repr=False)

    def __post_init__(self) -> None:
        check_classifier(self.model_config)
        super().__post_init__()

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one class for each name, or for each number up to the largest."""
        return new_classes(dataset, first_column(dataset, "label", columns, LABELS))

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists all combinations of the usual names."""
        return [{"image": image, "label": label} for image in IMAGES for label in LABELS]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, what is no image, and labels that do not fit the head.

        Only headers are looked at; `encode` decodes the images that are used.
        """
        columns = self.find_columns(dataset, split)
        _check_images(dataset, columns["image"], split)
        class_numbers(dataset, columns["label"], split, self.model_config)

    def targets(self, dataset: Dataset, split: str) -> NDArray[np.int64]:
        """Gives the class of each image."""
        return class_numbers(dataset, self.find_columns(dataset, split)["label"], split, self.model_config)

    def encode(self, dataset: Dataset) -> Dataset:
        """Decodes every image once, and keeps them as they are stored; columns: `image` and `labels`.

        Raises:
            ValueError: If an image is broken.
        """
        columns = self.find_columns(dataset, "data")
        images = dataset.select_columns([columns["image"]]).rename_columns({columns["image"]: "image"})
        mode = MODES.get(getattr(self.model_config, "num_channels", 3))
        images = images.cast_column("image", Image(mode=mode))
        for row in range(len(images)):
            try:
                images[row]
            except Exception as error:  # each decoder has its own
                raise _unreadable(f"column '{columns['image']}'", row, error) from error
        labels = class_numbers(dataset, columns["label"], "data", self.model_config)
        return images.add_column("labels", labels.tolist())

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes `pixel_values`, [B, channels, height, width] float32, and `labels` [B].

        Raises:
            ValueError: If the image processor leaves images of different sizes.
        """
        pixels = self.processor([example["image"] for example in examples])["pixel_values"]
        images = [torch.as_tensor(image).float() for image in pixels]
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise ValueError(
                f"images of a batch must have one size, the image processor gives {shapes[0]} and {shapes[1]}; "
                "use one that resizes or crops to the model's size"
            )
        labels = torch.tensor([example["labels"] for example in examples])
        return Batch(pixel_values=torch.stack(images), labels=labels)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes the one position of each example a dimension, [B, C] -> [B, 1, C]."""
        return Readout(outputs=logits[:, None], targets=batch["labels"][:, None])


def _check_images(dataset: Dataset, column: str, split: str) -> None:
    """Refuses a column that does not hold an image in every row; of each only the header is decoded."""
    feature = dataset.features[column]
    if not isinstance(feature, Image):
        raise ValueError(
            f"split '{split}', column '{column}': images must be of the Image feature, got {feature}; if these are "
            f"image files or their paths: dataset.cast_column('{column}', datasets.Image())"
        )
    images = full_column(dataset, column, split)
    files = zip(pc.struct_field(images, "bytes"), pc.struct_field(images, "path"), strict=True)
    for row, (content, path) in enumerate(files):
        file = io.BytesIO(content.as_py()) if content.is_valid else path.as_py()
        if isinstance(file, str) and "://" in file:  # inside an archive or far away
            continue
        try:
            if isinstance(file, str) and Path(file).exists() and not Path(file).is_file():
                raise ValueError(f"'{file}' is no plain file")  # a pipe or device may never end
            PIL.Image.open(file).close()
        except Exception as error:  # each format has its own
            raise _unreadable(f"split '{split}', column '{column}'", row, error) from error


def _unreadable(where: str, row: int, error: Exception) -> RowError:
    """Gives the error for an image that cannot be read."""
    reason = "no image" if isinstance(error, PIL.UnidentifiedImageError) else in_words(error)
    return RowError(f"{where}: the image in row {{row}} cannot be read ({reason}); remove such rows", row)
