"""What the interpretability study looks at: units, GoogLeNet, similarities, extractors, texts."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_mabprune.sparsity import sparsify
from research.models.images import Pictures
from research.models.training import Recipe
from research.studies.interpretability import googlenet as module
from research.studies.interpretability.activations import activations, side_by_side, unit_modules, unit_names
from research.studies.interpretability.extractor import Extractor, features, nt_xent, view
from research.studies.interpretability.googlenet import googlenet, torchvision_module
from research.studies.interpretability.hub import HubBase
from research.studies.interpretability.images import Images
from research.studies.interpretability.mis import Trials, unit_scores, varying
from research.studies.interpretability.networks import tiny, vit
from research.studies.interpretability.similarity import SIMILARITIES, same_class
from research.studies.interpretability.subjects import ImageSubject
from research.studies.interpretability.texts import Texts, TextSubject, read_texts, sentence_similarity
from tests.seeds import moved
from tests.small_tokenizers import small_tokenizer, texts
from tests.tiny_models import tiny_model

RECIPE = Recipe(steps=0, batch_size=16, learning_rate=1e-3, bfloat16=False)


def small_images(count: int = 40, classes: int = 10) -> Images:
    generator = torch.Generator().manual_seed(moved(0))
    pixels = torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    part = Pictures(pixels.float().permute(0, 3, 1, 2) / 128 - 1, labels)
    half = torch.full((3,), 128 / 255)
    return Images(part, part, part, np.asarray(pixels), tuple(map(str, range(classes))), half, half)


def test_a_unit_of_a_convolution_is_the_mean_over_places_before_norm() -> None:
    torch.manual_seed(moved(0))
    network, pixels = tiny(10, 0.125).eval(), torch.randn(7, 3, 32, 32)
    found = activations(network, pixels.split(3), network)
    assert list(found) == ["0", "3", "6"] and [part.shape for part in found.values()] == [(7, 4), (7, 8), (7, 16)]
    torch.testing.assert_close(found["0"], network[0](pixels).mean((2, 3)))  # type: ignore[index]
    assert unit_names(found)[3:5] == ["0:3", "3:0"] and side_by_side(found).shape == (7, 28)


def test_units_that_structured_pruning_takes_do_not_vary() -> None:
    torch.manual_seed(moved(0))
    network = tiny(10, 0.25).eval()
    sparsity = sparsify(network, 0.5, kind="structured")
    found = activations(network, [torch.randn(9, 3, 32, 32)], network)
    for name, kept in sparsity.kept_units.items():
        assert torch.equal(varying(found[name]), kept), name


def test_googlenet_has_torchvisions_layers_and_takes_small_images() -> None:
    pytest.importorskip("torchvision")
    network = googlenet(10, 0.125).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 57 and convolutions[0].stride == (1, 1) and convolutions[0].kernel_size == (3, 3)
    assert sum(layer.out_channels for layer in convolutions) == 7280 // 8


def test_a_width_that_leaves_no_whole_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width must be one of 1.0, 0.5, 0.25, 0.125, got 0.3"):
        googlenet(10, 0.3)


def test_torchvision_is_asked_for_by_name_and_may_lack_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [ModuleNotFoundError("No module named 'torchvision'")]

    def imported(name: str) -> ModuleType:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "import_module", imported)
    monkeypatch.setattr(module, "_SCHEMAS", [])
    with pytest.raises(ImportError, match="GoogLeNet is torchvision's, which is not installed: pip install"):
        torchvision_module()
    answers[:] = [RuntimeError("something else")]
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_module()
    declared: list[str] = []
    monkeypatch.setattr(
        module.torch.library, "Library", lambda *_: SimpleNamespace(define=lambda schema: declared.append(schema))
    )
    answers[:] = [RuntimeError("operator torchvision::nms does not exist"), sys]
    assert torchvision_module() is sys
    assert [schema.split("(")[0] for schema in declared] == ["nms", "qnms"]


def test_the_extractor_learns_that_views_of_one_image_belong_together(tmp_path: Path) -> None:
    same = torch.eye(3)
    # Of the 5 other views one is the partner, at cosine 1, and four are at 0: -log(e^2 / (e^2 + 4)).
    assert nt_xent(same, same).item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), abs=1e-6)
    images = small_images()
    assert view(images.train.pixels).shape == images.train.pixels.shape
    extractor = Extractor(0.25, 1, RECIPE)
    network = extractor.without_labels(images.train, tmp_path / "extractor")
    again = extractor.without_labels(images.train, tmp_path / "extractor")
    assert torch.equal(features(network, images.test.pixels), features(again, images.test.pixels))
    assert features(network, images.test.pixels).shape == (40, 32)


def test_similarities_name_what_they_are_and_which_classes_networks_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, extractor = small_images(), Extractor(0.25, 1, RECIPE)
    shapes = {}
    for name in ("self_supervised", "other_classes"):
        similarity = SIMILARITIES[name](extractor)
        seen = similarity.network_images(images)
        found = similarity.matrix(images, tmp_path)
        assert found.shape == (len(seen.probes.labels),) * 2 and len(seen.probe_pixels) == len(found)
        torch.testing.assert_close(found.diagonal(), torch.ones(len(found)))
        shapes[name] = (len(seen.names), len(found))
    assert shapes == {"self_supervised": (10, 40), "other_classes": (5, 20)}

    for name in ("dreamsim", "lpips"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"--similarity {name} needs the package {name}"):
            SIMILARITIES[name](extractor).matrix(images, tmp_path)

    mean = SimpleNamespace(embed=lambda pixels: torch.stack([pixels.mean((1, 2, 3)), torch.ones(len(pixels))], 1))
    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=lambda **_: (mean, None)))
    assert SIMILARITIES["dreamsim"](extractor).matrix(images, tmp_path).shape == (40, 40)

    class Distance(nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return (one - other).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=lambda **_: Distance()))
    found = SIMILARITIES["lpips"](extractor).matrix(images, tmp_path)
    assert torch.equal(found, found.T) and found.fill_diagonal_(-1).max() < 0


def test_the_nearest_probe_says_how_much_a_similarity_knows() -> None:
    similarity = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
    assert same_class(similarity, torch.tensor([0, 0, 1])) == pytest.approx(2 / 3)


def test_of_models_of_transformers_the_neurons_are_looked_at() -> None:
    assert list(unit_modules(vit(10, 0.25))) == [f"model.vit.layers.{layer}.mlp.fc1" for layer in range(6)]
    for model_type, place in (("distilbert", "ffn.lin1"), ("llama", "mlp.gate_proj"), ("gpt2", "mlp.c_fc")):
        model = tiny_model(model_type, "AutoModelForSequenceClassification")
        named = unit_modules(model)
        assert len(named) == model.config.num_hidden_layers, model_type
        assert all(name.startswith(model.base_model_prefix) and name.endswith(place) for name in named), model_type
    with pytest.raises(ValueError, match="a mixtral has no FFN whose neurons a linear layer makes"):
        unit_modules(tiny_model("mixtral", "AutoModelForSequenceClassification"))


def test_an_image_classifier_by_name_takes_the_images_of_the_study(tmp_path: Path) -> None:
    images, sizes = small_images(), {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(moved(0))
    names = [*reversed(images.names), "none of them"]
    config = ViTConfig(image_size=16, patch_size=8, intermediate_size=12, id2label=dict(enumerate(names)), **sizes)
    model = ViTForImageClassification(config).eval()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    base = HubBase(str(tmp_path))
    subject = ImageSubject(base, images, tmp_path, RECIPE, "words", torch.eye(40))
    network = subject.network(0)
    inputs = processor(images=list(images.probe_pixels), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(network(images.probes.pixels), model(**inputs).logits[:, :10].flip(1))
    assert [part.shape for part in subject.activations(network).values()] == [(40, 12)] * 2
    assert not torch.equal(subject.untrained(1).model.classifier.weight, network.model.classifier.weight)
    sparsity = sparsify(network, 0.5, kind="unstructured")
    subject.train(network, 1, 0)
    assert sparsity.achieved == pytest.approx(0.5, abs=0.01) and 0 <= subject.accuracy(network) <= 1
    with pytest.raises(
        ValueError,
        match="the image model has no class 'frog'; its 11 classes begin with '9': name a classifier of frog",
    ):
        base.trained(replace(images, names=("frog",)), 0, tmp_path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny text classifier and the data of texts."""
    folder, tokenizer = tmp_path_factory.mktemp("texts"), small_tokenizer("wordpiece")
    torch.manual_seed(moved(0))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split in ("train", "test"):
        rows = texts(60, seed=len(split))
        pd.DataFrame({"text": rows, "label": [at % 2 for at in range(60)]}).to_parquet(folder / f"{split}.parquet")
    return folder


def test_texts_are_looked_at_over_their_own_tokens(classifier: Path) -> None:
    rows, probes, test = read_texts(classifier, 10, 40, 20)
    assert not set(rows.texts) & set(probes.texts) and len(test.labels) == 20
    model = str(classifier / "model")
    similarity = sentence_similarity(model, probes.texts)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(40))
    subject = TextSubject(model, rows, probes, test, RECIPE, "words", similarity)
    network = subject.network(0)
    found = subject.activations(network)
    assert list(found) == [f"bert.encoder.layer.{layer}.intermediate.dense" for layer in (0, 1)]
    alone = TextSubject(model, rows, Texts(probes.texts[:1], probes.labels[:1]), test, RECIPE, "", similarity)
    for name, part in alone.activations(network).items():  # without padding
        torch.testing.assert_close(part[0], found[name][0], rtol=1e-4, atol=1e-5)
    assert unit_scores(side_by_side(found), similarity, Trials(2, 3)).mis.shape == (24,)
    assert 0 <= subject.accuracy(network) <= 1
    before = network.classifier.weight.detach().clone()
    subject.train(network, 1, 0)
    assert not torch.equal(before, network.classifier.weight)


def test_too_few_texts_are_refused(classifier: Path) -> None:
    with pytest.raises(ValueError, match=r"train.parquet has \d+ different texts, and 700 are asked for"):
        read_texts(classifier, 600, 100, 10)
