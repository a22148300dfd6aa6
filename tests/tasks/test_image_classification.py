"""Images of any mode and size, labels by number and by name, and images that cannot be read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image, Value
from transformers import ViTImageProcessor

from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.evaluation.quality import evaluate, forward_of
from hf_mabprune.recovery.batching import batch_order
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of
from tests.recovery.case import SETTINGS
from tests.tasks.tiny_tasks import make_processor, pictures, task_of, vit

NAMES = ("cat", "dog", "frog")


def classifier(**settings: Any) -> Task:
    return task_of(vit(), make_processor("image"), **settings)


def labelled(labels: list[Any], label: Any = None, images: list[Any] | None = None) -> Dataset:
    features = Features({"image": Image(), "label": label or Value("int64")})
    return Dataset.from_dict({"image": images or pictures(len(labels)), "label": labels}, features)


def file_of(image: PIL.Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_a_batch_is_what_the_image_processor_gives() -> None:
    """Pixels from 0 to 255 become (p / 255 - 0.5) / 0.5; an image of the model's size is not resized."""
    image = PIL.Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    task = classifier()
    (batch,) = batches_of(task, task.encode(labelled([2], images=[image])), 4)
    assert set(batch) == {"pixel_values", "labels"} and batch["pixel_values"].dtype == torch.float32
    expected = torch.arange(192.0).reshape(8, 8, 3).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(batch["pixel_values"][0], expected, rtol=0, atol=1e-6)
    assert batch["labels"].tolist() == [2]
    assert (batch.examples, batch.tokens, batch.length) == (1, 1, 0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_what_the_model_reads(mode: str) -> None:
    task, image = classifier(), pictures(1)[0].resize((8, 8))
    other = image.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    stored = [{"bytes": file_of(other, kind), "path": None}, {"bytes": file_of(other.convert("RGB")), "path": None}]
    (batch,) = batches_of(task, task.encode(labelled([0, 0], images=stored)), 4)
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert torch.equal(*batch["pixel_values"])


def test_a_model_of_one_channel_reads_grey() -> None:
    model = vit(num_channels=1)
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    task = task_of(model, processor)
    (batch,) = batches_of(task, task.encode(labelled([0, 1, 2])), 4)
    assert batch["pixel_values"].shape == (3, 1, 8, 8)
    with torch.no_grad():
        assert task.readout(model, batch).outputs.shape == (3, 1, 3)


@pytest.mark.parametrize(
    ("columns", "given", "found"),
    [
        (["img", "label"], {}, {"image": "img", "label": "label"}),
        (["img", "fine_label", "coarse_label"], {}, {"image": "img", "label": "fine_label"}),
        (["image", "labels"], {}, {"image": "image", "label": "labels"}),
        (["img", "coarse_label"], {"label": "coarse_label"}, {"image": "img", "label": "coarse_label"}),
    ],
)
def test_usual_columns_are_found(columns: list[str], given: dict[str, str], found: dict[str, str]) -> None:
    dataset = Dataset.from_dict({column: [0] for column in columns})
    assert classifier(columns=given).find_columns(dataset, "train") == found


def test_names_are_translated_by_the_models_config() -> None:
    model = vit()
    model.config.label2id = {name.upper(): number for number, name in enumerate(NAMES)}
    task = task_of(model, make_processor("image"))
    assert task.encode(labelled(["frog", "dog", "cat"], Value("string")))["labels"][:] == [2, 1, 0]
    assert task.encode(labelled([0, 1, 2], ClassLabel(names=NAMES[::-1])))["labels"][:] == [2, 1, 0]
    assert task.encode(labelled([0, 1, 2], ClassLabel(names=["x", "y", "z"])))["labels"][:] == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0, 1, 3], "int64", r"split 'train', column 'label': labels must be from 0 to 2, .* got 3 in row 2; use a"),
        ([0, -1, 1], "int64", r"split 'train', column 'label': .*got -1 in row 1; this split may have no labels"),
        ([0, None, 1], "int64", "split 'train', column 'label': no value in row 1"),
        (["LABEL_0", "x", "x"], "string", r"labels must be among the model's, label_0, .* got 'x' in row 1"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(labels: list[Any], kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier().check(labelled(labels, Value(kind)), "train")


def test_what_is_no_image_is_refused_before_compute(tmp_path: Path) -> None:
    whole = file_of(pictures(1)[0])
    for broken, reason in (
        ({"bytes": b"no picture", "path": None}, "no image"),
        ({"bytes": b"", "path": None}, "no image"),
        ({"bytes": None, "path": str(tmp_path / "gone.png")}, "No such file"),
    ):
        images = [{"bytes": whole, "path": None}, broken]
        where = r"split 'test', column 'image': the image in row 1"
        with pytest.raises(ValueError, match=rf"{where} cannot be read \(.*{reason}.*\); remove such rows"):
            classifier().check(labelled([0, 1], images=images), "test")
    selected = labelled([0, 1], images=[broken, {"bytes": whole, "path": None}]).select([1])
    classifier().check(selected, "test")


def test_a_truncated_image_is_found_when_it_is_encoded() -> None:
    whole = file_of(pictures(1)[0].resize((64, 64)), "JPEG")
    images = [{"bytes": content, "path": None} for content in (whole, whole, whole[: len(whole) // 2])]
    with pytest.raises(ValueError, match=r"column 'image': the image in row 2 cannot be read \(.*truncated"):
        classifier().encode(labelled([0, 1, 2], images=images))


def test_images_must_have_their_feature() -> None:
    dataset = Dataset.from_dict({"image": ["a.png"], "label": [0]})
    message = r"split 'test', column 'image': images must be of the Image feature, got Value.*cast_column\('image', "
    with pytest.raises(ValueError, match=message):
        classifier().check(dataset, "test")


def test_images_that_stay_of_different_sizes_are_refused() -> None:
    task = task_of(vit(), ViTImageProcessor(do_resize=False))
    with pytest.raises(ValueError, match=r"must have one size, the image processor gives \(3, \d+, \d+\) and \(3, "):
        batches_of(task, task.encode(labelled([0, 1])), 2)[0]


def test_other_heads_and_settings_of_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="num_labels must be at least 2, got 1: regression"):
        task_of(vit(num_labels=1), make_processor("image"))
    with pytest.raises(ValueError, match="problem_type must be single_label_classification, got multi_label"):
        task_of(vit(problem_type="multi_label_classification"), make_processor("image"))
    for setting, value in (("max_length", 8), ("prefix", "x ")):
        with pytest.raises(ValueError, match=rf"task\.{setting} means nothing to task 'image_c.*', got {value!r}"):
            classifier(**{setting: value})


def test_a_new_head_has_the_classes_of_the_data() -> None:
    task, named = type(classifier()), labelled([0, 1], ClassLabel(names=NAMES))
    assert task.new_head(named, {})["id2label"] == dict(enumerate(NAMES))
    assert task.new_head(labelled([0, 4]), {}) == {"num_labels": 5}
    with pytest.raises(ValueError, match="no column 'topic'"):
        task.new_head(named, {"label": "topic"})


def test_evaluation_reads_every_image_once_in_any_precision() -> None:
    model, task = vit(), classifier()
    data = labelled([number % 3 for number in range(10)])
    batches = batches_of(task, task.encode(data), 4, by_length=True)
    with torch.no_grad():
        pixels = torch.cat([batch["pixel_values"] for batch in batches])
        right = model(pixel_values=pixels).logits.argmax(-1).tolist()
    accuracy = np.mean([guess == number % 3 for number, guess in enumerate(right)])
    for dtype in (torch.float32, torch.float64):
        found = evaluate(forward_of(model.to(dtype), task), task, batches, Accelerator(cpu=True), intervals=False)
        assert found.metrics == {"accuracy": pytest.approx(accuracy)}
        assert found.scores.predicted.tolist() == right
        assert found.scores.correct.tolist() == [guess == number % 3 for number, guess in enumerate(right)]


def test_recovery_takes_images_in_an_order_that_the_seed_repeats() -> None:
    """Without lengths there is nothing to sort by: every epoch is a permutation, the same for the same seed."""
    task = classifier()
    lengths = task.lengths(task.encode(labelled([0] * 16)))
    assert lengths.tolist() == [0] * 16
    first, again, other = (batch_order(lengths, SETTINGS, seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert sorted(first.ravel().tolist()) == sorted([*range(16)] * 2)


def test_settings_lead_to_the_task() -> None:
    model = vit()
    model.config.architectures = ["ViTForImageClassification"]
    config = TaskConfig(dataset=DatasetConfig(path="in-memory"))
    assert type(build_task(config, make_processor("image"), model.config)) is type(classifier())
