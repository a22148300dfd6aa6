"""A folder with models, data and runs, most of them broken and named after their fault."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tests.problems import sentences
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

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
    "search": {"rounds": 1, "pulls_per_arm": 1},
    "output": {"dir": "out", "random_seeds": 1},
}


def make_models(folder: Path) -> None:
    """A model that works of each head, and broken copies, named after their fault."""
    tiny_model("bert", CLASSIFIER).save_pretrained(folder / "bert")
    make_tokenizer("pair").save_pretrained(folder / "bert")
    tiny_model("llama", LANGUAGE_MODEL).save_pretrained(folder / "llama")
    make_tokenizer("plain").save_pretrained(folder / "llama")

    def copy(name: str, source: str = "bert", /, **changes: Any) -> Path:
        shutil.copytree(folder / source, folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | changes))
        return folder / name

    def other(name: str, auto_class: str = CLASSIFIER, **changes: Any) -> None:
        tiny_model("bert", auto_class, **changes).save_pretrained(folder / name)
        make_tokenizer("pair").save_pretrained(folder / name)

    other("base_model", "AutoModel")
    other("two_heads", "AutoModelForPreTraining")
    other("regression", num_labels=1)
    other("few_words", vocab_size=12)
    other("four_layers", num_hidden_layers=4)
    copy("megatron", model_type="megatron-bert", architectures=["MegatronBertForSequenceClassification"])
    copy("headless", architectures=None)
    copy("misspelt", model_type="brt")
    copy("mistyped", hidden_size="big")
    copy("odd_heads", num_attention_heads=5)
    copy("quantised", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    copy("third_layer", num_hidden_layers=3)
    copy("wider", intermediate_size=64)
    copy("multi_label", problem_type="multi_label_classification")
    copy("other_padding", pad_token_id=1)
    copy("both_ways", architectures=["BertLMHeadModel"])
    make_tokenizer("pair", pad_token=None).save_pretrained(copy("no_padding"))
    (copy("no_config") / "config.json").unlink()
    (copy("no_json") / "config.json").write_text("{model_type: bert")
    (copy("adapter") / "config.json").rename(folder / "adapter" / "adapter_config.json")
    (copy("broken_tokenizer") / "tokenizer.json").write_text("{")
    for name, source in (("no_tokenizer", "bert"), ("no_llama_tokenizer", "llama")):
        for file in copy(name, source).glob("tokenizer*"):
            file.unlink()
    (copy("no_weights") / "model.safetensors").unlink()
    weights = copy("truncated") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    (copy("web_page") / "model.safetensors").write_text("<html>404</html>")
    weights = copy("no_classifier") / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier")}
    save_file(kept, weights, {"format": "pt"})
    (copy("broken_bin") / "model.safetensors").unlink()
    (folder / "broken_bin" / "pytorch_model.bin").write_bytes(b"abc")


def make_data(folder: Path) -> None:
    """Three splits that work, and broken files, named after their fault."""
    folder.mkdir()
    for seed, split in enumerate(SPLITS):
        Dataset.from_dict(sentences(48, seed)).to_parquet(str(folder / f"{split}.parquet"))
    texts, labels = sentences(8, 0).values()
    columns: dict[str, dict[str, list[Any]]] = {
        "names": {"sentence": texts, "label": ["good", "bad"] * 4},
        "seven": {"sentence": texts, "label": [*labels[:-1], 7]},
        "unlabelled": {"sentence": texts, "label": [-1] * 8},
        "scores": {"sentence": texts, "label": [0.5] * 8},
        "no_label": {"sentence": texts, "label": [*labels[:-1], None]},
        "no_text": {"sentence": [*texts[:-1], None], "label": labels},
        "numbers": {"sentence": list(range(8)), "label": labels},
        "other_columns": {"sentences": texts, "labell": labels},
        "blank": {"sentence": [""] * 8, "label": labels},
        "short": {"sentence": ["a b", "c"], "label": [0, 1]},
        "none": {"sentence": [], "label": []},
    }
    for name, content in columns.items():
        Dataset.from_dict(content).to_parquet(str(folder / f"{name}.parquet"))
    (folder / "words.parquet").write_text("no parquet")
    (folder / "words.json").write_text("no json")
    faulty = [folder / f"{name}.parquet" for name in columns] + [folder / "words.parquet", folder / "words.json"]
    for split in SPLITS:  # a file of its own, for one file is refused in the place of three splits
        (folder / split).mkdir()
        for file in faulty:
            shutil.copy(file, folder / split)


def break_runs(folder: Path) -> None:
    """Copies of the finished run, named after their fault."""
    report = json.loads((folder / "run" / "mabprune" / "report.json").read_text())
    faults: dict[str, tuple[str, str]] = {
        "broken_report": ("report.json", "{"),
        "newer_report": ("report.json", json.dumps(report | {"colour": "red"})),
        "broken_arms": ("arms.parquet", "no parquet"),
        "broken_settings": ("config.yaml", "model: ["),
        "other_settings": ("config.yaml", "model: 3"),
    }
    for name, (file, content) in faults.items():
        shutil.copytree(folder / "run", folder / name)
        (folder / name / "mabprune" / file).write_text(content)
    shutil.copytree(folder / "run", folder / "no_report")
    (folder / "no_report" / "mabprune" / "report.json").unlink()


def write_yaml(path: Path, settings: dict[str, Any]) -> str:
    """A small run that works, with some settings changed, as a file."""
    config = deepcopy(BASE)
    for key, value in settings.items():
        *parts, last = key.split(".")
        part = config
        for name in parts:
            part = part.setdefault(name, {})
        part[last] = value
    path.write_text(yaml.safe_dump(config))
    return str(path)
