"""Tokenizers and image processors: saved beside the weights, read back, and refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSeq2SeqLM, AutoTokenizer

from hf_mabprune.checkpoints.processors import kind_of_processor, load_processor
from hf_mabprune.checkpoints.save import save_checkpoint
from tests.tasks.tiny_tasks import CASES, make_processor, pictures, task_of

LOADERS = {"image_classification": AutoModelForImageClassification, "seq2seq": AutoModelForSeq2SeqLM}


def skip_without_torchvision(folder: Path) -> None:
    """Skips a test where transformers reads image processors with torchvision alone, as older versions do."""
    make_processor("image").save_pretrained(folder / "probe")
    try:
        AutoImageProcessor.from_pretrained(folder / "probe")
    except ImportError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_what_is_saved_gives_the_same_inputs_and_logits(name: str, tmp_path: Path) -> None:
    if name == "image_classification":
        skip_without_torchvision(tmp_path)
    task, model, data = CASES[name].build()
    save_checkpoint(model, tmp_path, task.processor, torch.float32)
    again = task_of(LOADERS[name].from_pretrained(tmp_path), load_processor(task.processor_class, str(tmp_path)))
    batches = [bound.collate(list(bound.encode(data))) for bound in (task, again)]
    for key, tensor in batches[0].items():
        assert torch.equal(tensor, batches[1][key]), key
    with torch.no_grad():
        before = task.readout(model, batches[0])
        after = again.readout(LOADERS[name].from_pretrained(tmp_path), batches[1])
    assert torch.equal(before.outputs, after.outputs)


def test_an_image_processor_is_saved_as_transformers_has_it(tmp_path: Path) -> None:
    skip_without_torchvision(tmp_path)
    make_processor("image").save_pretrained(tmp_path / "own")
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["preprocessor_config.json"]
    again = load_processor("AutoImageProcessor", str(tmp_path / "own"))
    picture = pictures(1)
    np.testing.assert_array_equal(again(picture)["pixel_values"], make_processor("image")(picture)["pixel_values"])


def test_a_missing_or_broken_image_processor_is_one_line(tmp_path: Path) -> None:
    _, model, _ = CASES["image_classification"].build()
    model.save_pretrained(tmp_path)
    for content in (None, "{"):
        if content:
            (tmp_path / "preprocessor_config.json").write_text(content)
        message = r"^the image processor of .* cannot be read \(.*: save it beside the model \(processor\.save_pre"
        with pytest.raises(ValueError, match=message) as error:
            load_processor("AutoImageProcessor", str(tmp_path))
        assert "\n" not in str(error.value)


def test_a_tokenizer_without_words_is_refused(tmp_path: Path) -> None:
    CASES["sequence_classification"].model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer.*: save it beside the model \(tokenizer\.save_pretrained\)"):
        load_processor("AutoTokenizer", str(tmp_path))
    make_processor("pair").save_pretrained(tmp_path)
    vocabulary = AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert load_processor("AutoTokenizer", str(tmp_path)).get_vocab() == vocabulary


def test_processors_are_called_what_they_are() -> None:
    assert kind_of_processor("AutoTokenizer") == "tokenizer"
    assert kind_of_processor("AutoImageProcessor") == "image processor"


@pytest.mark.parametrize("side", [10**6, 0, -3])
def test_images_of_any_size_are_not_made(side: int, tmp_path: Path) -> None:
    skip_without_torchvision(tmp_path)
    processor = make_processor("image")
    processor.save_pretrained(tmp_path)
    content = (tmp_path / "preprocessor_config.json").read_text()
    assert load_processor("AutoImageProcessor", str(tmp_path)).size == processor.size
    (tmp_path / "preprocessor_config.json").write_text(content.replace('"height": 8', f'"height": {side}'))
    with pytest.raises(ValueError, match=rf"size must be within 1 and 10000 pixels, got {side}"):
        load_processor("AutoImageProcessor", str(tmp_path))
