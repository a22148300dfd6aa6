"""What a user gets wrong ends in one line that says the rule, the value and the remedy, and leaves nothing behind.

Faults that can be known without the model's weights are refused before those are loaded.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tests.tasks.tiny_tasks import make_tokenizer
from tests.test_pipeline import sentences
from tests.tiny_models import tiny_config, tiny_model

CLASSIFIER, LANGUAGE_MODEL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
SPLITS = ("train", "validation", "test")
BASE: dict[str, Any] = {
    "model": {"name": "models/bert"},
    "task": {
        "dataset": {"path": "parquet", "data_files": {split: f"data/{split}.parquet" for split in SPLITS}},
        "splits": {"test": "test"},
        "batch_size": 8,
    },
    "prune": {"target": {"neurons": 0.5, "heads": 0.5}, "block_size": 8, "layout": "per_layer"},
    "search": {"rounds": 2, "pulls_per_arm": 2},
    "output": {"dir": "out", "random_seeds": 1},
}


def make_models(folder: Path) -> None:
    """A model that works of each head, and broken copies of it; each is named after its fault."""
    tiny_model("bert", CLASSIFIER).save_pretrained(folder / "bert")
    make_tokenizer("pair").save_pretrained(folder / "bert")
    tiny_model("llama", LANGUAGE_MODEL).save_pretrained(folder / "llama")
    make_tokenizer("plain").save_pretrained(folder / "llama")

    def broken(name: str, source: str = "bert", **changes: Any) -> Path:
        shutil.copytree(folder / source, folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | changes))
        return folder / name

    def stored(name: str, auto_class: str, **changes: Any) -> None:
        tiny_model("bert", auto_class, **changes).save_pretrained(folder / name)
        make_tokenizer("pair").save_pretrained(folder / name)

    stored("headless", "AutoModel")
    stored("masked_lm", "AutoModelForMaskedLM")
    stored("regression", CLASSIFIER, num_labels=1)
    stored("few_words", CLASSIFIER, vocab_size=12)
    stored("few_positions", CLASSIFIER, max_position_embeddings=4)
    broken("gpt2", model_type="gpt2", architectures=["GPT2ForSequenceClassification"])
    broken("nameless", architectures=None)
    broken("no_type", model_type=None)
    broken("misspelt", model_type="brt")
    broken("quantised", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    broken("three_layers", num_hidden_layers=3)
    broken("wider", intermediate_size=64)
    broken("multi_label", problem_type="multi_label_classification")
    broken("other_padding", pad_token_id=1)
    broken("both_ways", architectures=["BertLMHeadModel"])
    (broken("no_config") / "config.json").unlink()
    (broken("no_json") / "config.json").write_text("{model_type: bert")
    (broken("no_weights") / "model.safetensors").unlink()
    (broken("no_tokenizer") / "tokenizer.json").unlink()
    (folder / "no_tokenizer" / "tokenizer_config.json").unlink()
    weights = broken("truncated") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    weights = broken("no_safetensors") / "model.safetensors"
    weights.write_text("<html>404</html>")
    weights = broken("no_classifier") / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier")}
    save_file(kept, weights, {"format": "pt"})
    (broken("adapter") / "config.json").rename(folder / "adapter" / "adapter_config.json")
    make_tokenizer("pair", pad_token=None).save_pretrained(broken("no_padding"))


def make_data(folder: Path) -> None:
    """Three good splits, and broken ones; each is named after its fault."""
    folder.mkdir()
    for seed, split in enumerate(SPLITS):
        Dataset.from_dict(sentences(48, seed)).to_parquet(str(folder / f"{split}.parquet"))
    rows = sentences(8, 0)
    texts, labels = rows["sentence"], rows["label"]
    broken: dict[str, dict[str, list[Any]]] = {
        "names": {"sentence": texts, "label": ["good", "bad"] * 4},
        "many_labels": {"sentence": texts, "label": [*labels[:-1], 7]},
        "unlabelled": {"sentence": texts, "label": [-1] * 8},
        "scores": {"sentence": texts, "label": [0.5] * 8},
        "no_label": {"sentence": texts, "label": [*labels[:-1], None]},
        "no_text": {"sentence": [*texts[:-1], None], "label": labels},
        "numbers": {"sentence": list(range(8)), "label": labels},
        "odd_columns": {"sentences": texts, "labell": labels},
        "blank": {"sentence": [""] * 8, "label": labels},
        "short": {"sentence": ["a b"], "label": [0]},
        "none": {"sentence": [], "label": []},
    }
    for name, columns in broken.items():
        Dataset.from_dict(columns).to_parquet(str(folder / f"{name}.parquet"))
    (folder / "words.parquet").write_text("no parquet")
    (folder / "words.json").write_text("no json")
