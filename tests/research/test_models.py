"""Recipes of small models: each trains, measures and saves a model that its auto class loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from research.models import gpt2, mixtral, t5, vit
from research.models.language import cut_windows, perplexity
from research.models.training import Recipe
from tests.seeds import moved

RECIPE = Recipe(steps=2, batch_size=4, learning_rate=1e-3, seed=moved(0))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of lines and documents of made-up words."""
    rng = np.random.default_rng(moved(0))
    for split, rows in (("train", 60), ("validation", 20), ("test", 20)):
        words = [" ".join(rng.choice(["alpha", "beta", "gamma", "delta"], 40)) for _ in range(rows)]
        lines = [text + "\n" * (row % 2) for row, text in enumerate(words)]
        Dataset.from_dict({"text": lines}).to_parquet(str(tmp_path / f"{split}.parquet"))
    return tmp_path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of made-up images of two classes."""
    rng = np.random.default_rng(moved(0))
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    for split, rows in (("train", 24), ("test", 4)):
        pixels = rng.integers(256, size=(rows, 32, 32, 3), dtype=np.uint8)
        columns = {"image": list(pixels), "label": [row % 2 for row in range(rows)]}
        Dataset.from_dict(columns, features).to_parquet(str(tmp_path / f"{split}.parquet"))
    return tmp_path


def figures_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "figures.json").read_text())


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (gpt2.make, {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        (
            mixtral.make,
            {
                "hidden_size": 16,
                "intermediate_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 8,
            },
        ),
    ],
)
def test_language_models(texts: Path, make: Callable[..., Any], sizes: dict[str, int]) -> None:
    out = texts / "model"
    figures = make(str(texts), None, None, out, RECIPE, **sizes)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert figures_of(out) == {"parameters": model.num_parameters(), **figures}
    lines = Dataset.from_parquet(str(texts / "test.parquet"))["text"]
    windows = cut_windows(tokenizer, list(lines))
    assert perplexity(model, windows) == pytest.approx(figures["test"]["perplexity"], rel=1e-5)
    assert (windows == tokenizer.eos_token_id).sum() in (9, 10)  # every other row is a document
    assert tokenizer.decode(tokenizer(lines[1])["input_ids"]) == lines[1]


def test_every_token_of_mixtral_sees_two_experts(texts: Path) -> None:
    out = texts / "model"
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    figures = mixtral.make(str(texts), None, None, out, RECIPE, **sizes, num_key_value_heads=1, head_dim=8)
    np.testing.assert_allclose(np.sum(figures["validation"]["experts_load"], 1), [2, 2], atol=1e-3)
    assert AutoConfig.from_pretrained(out).output_router_logits is False
    even = (torch.zeros(5, 8), torch.zeros(5, 8))
    assert mixtral.imbalance(even, AutoConfig.from_pretrained(out)).item() == pytest.approx(2)


def test_t5(tmp_path: Path) -> None:
    rows = {"train": 20, "validation": 4, "test": 4}
    figures = t5.make(tmp_path, RECIPE, rows, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert figures_of(tmp_path) == {"parameters": model.num_parameters(), **figures}
    splits = {split: Dataset.from_parquet(str(tmp_path / "data" / f"{split}.parquet")) for split in rows}
    assert {split: len(written) for split, written in splits.items()} == rows
    for row in splits["train"]:
        assert row["target"].split() == sorted(row["source"].split())
    assert t5.measure(model, tokenizer, splits["test"]) == pytest.approx(figures["test"])
    assert tokenizer("c a").input_ids == [5, 3, 1] and tokenizer.decode([5, 3]) == "c a"


def test_vit(images: Path) -> None:
    out = images / "model"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    figures = vit.make(str(images), out, RECIPE, **sizes)
    model = AutoModelForImageClassification.from_pretrained(out)
    assert figures_of(out) == {"parameters": model.num_parameters(), **figures}
    assert model.config.id2label == {0: "cat", 1: "dog"} and figures["training_rows"] == 22
    pictures = vit.read(Dataset.from_parquet(str(images / "test.parquet")), AutoImageProcessor.from_pretrained(out))
    assert vit.accuracy(model, pictures) == figures["test"]["accuracy"]


def test_pasted_boxes_mix_targets_by_their_area() -> None:
    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 32)
    mixed, targets = vit.cut_and_mixed(pixels, torch.eye(4))
    for row in range(4):
        shares = torch.stack([(mixed[row, 0] == other).float().mean() for other in range(4)])
        torch.testing.assert_close(targets[row], shares)
