"""What tests of several rooms share: small problems with all that pulls need, made-up arms, and small runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.arms import ArmTable, KeepIndices
from hf_mabprune.config import PruneConfig, check
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.surgery.cut import Layout
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from tests.seeds import moved
from tests.tasks.tiny_tasks import make_tokenizer, task_of
from tests.tiny_models import keep_for, tiny_model

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
HEADS_FIXED = ("bert", "roberta", "electra", "xlm-roberta")  # whose stock config cannot say fewer heads
LETTERS = "abcdefghij"
SPLITS = ("train", "validation", "test")


def problem(model_type: str) -> tuple[PreTrainedModel, Task, list[Batch], ArmTable]:
    """Gives a tiny model with its task, three padded batches and all its arms."""
    decoder = model_type in DECODERS
    model = tiny_model(model_type, "AutoModelForCausalLM" if decoder else "AutoModelForSequenceClassification")
    task = task_of(model, make_tokenizer("plain" if decoder else "pair"))
    generator = torch.Generator().manual_seed(moved(3))
    batches = []
    for _ in range(3):
        ids = torch.randint(3, 16, (4, 7), generator=generator)
        attention = torch.ones_like(ids)
        if not decoder:
            ids[0, 5:], attention[0, 5:] = 0, 0
        labels = ids.clone() if decoder else torch.randint(0, 2, (4,), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": attention, "labels": labels})
    return model, task, batches, arm_table(model, ["neuron", "head"], 16, 7)


def some_context(arms: ArmTable) -> np.ndarray:
    """Gives a mask of kept arms, [K], in which three are gone."""
    kept = np.ones(len(arms), dtype=bool)
    kept[[1, 4, len(arms) - 1]] = False
    return kept


def pull_all(pulls: Pulls, kept: np.ndarray) -> np.ndarray:
    """Pulls every kept arm on the first and the third batch."""
    pulls.set_context(kept)
    arms = np.flatnonzero(kept)
    return pulls.pull(np.repeat(arms, 2), np.tile([0, 2], len(arms)))


def rounding(model: PreTrainedModel) -> float:
    """Says how far two ways to the same numbers may end up apart in float64.

    The norms of decoders work in float32 all the same: what differs in the last digit of a float64 there may differ in
    the last digit of a float32 behind it.
    """
    return 1e-8 if hasattr(model.base_model, "norm") else 1e-13


def small_effects(model_type: str) -> ReplayPulls:
    """Gives pulls on a tiny model whose sites hardly matter, so that second order is all there is."""
    model, task, batches, arms = problem(model_type)
    model.double()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("output.dense", "down_proj", "o_proj")):
                module.weight.mul_(1e-2)
    return ReplayPulls(model, arms, task, batches)


def selection(model_type: str, model: PreTrainedModel, layout: Layout) -> KeepIndices:
    """Gives random keep indices that a layout can say: all heads stay where a stock config cannot say fewer."""
    keep = keep_for(model, layout)
    if layout == "uniform" and model_type in HEADS_FIXED:
        return KeepIndices(neurons=keep.neurons, heads={})
    return keep


def table(
    neurons: Sequence[Sequence[int]] = (),
    heads: Sequence[Sequence[int]] = (),
    parameters: tuple[int, int] = (1, 1),
    macs: tuple[int, int] = (1, 1),
) -> ArmTable:
    """Makes up arms of the given units, layer by layer; costs are per arm, of neurons and of heads."""
    rows = []
    for kind, layers, cost, work in (
        ("neuron", neurons, parameters[0], macs[0]),
        ("head", heads, parameters[1], macs[1]),
    ):
        for layer, units in enumerate(layers):
            stops = np.cumsum(units)
            rows += [
                (kind, layer, index, stop - size, stop, cost, work)
                for index, (size, stop) in enumerate(zip(units, stops, strict=True))
            ]
    kind, *numbers = zip(*rows, strict=True)
    return ArmTable(np.array(kind), *(np.array(column, dtype=np.int64) for column in numbers))


def whole(arms: ArmTable) -> np.ndarray:
    """Gives the mask that keeps every arm, [K]."""
    return np.ones(len(arms), dtype=bool)


def sentences(count: int, seed: int) -> dict[str, list[Any]]:
    """Makes up texts of two to seven letters, labelled by whether the number of a's is odd."""
    rng = np.random.default_rng(moved(seed))
    texts = [" ".join(rng.choice(list(LETTERS), int(rng.integers(2, 8)))) for _ in range(count)]
    return {"sentence": texts, "label": [text.count("a") % 2 for text in texts]}


def write_splits(folder: Path) -> dict[str, str]:
    """Writes 48 sentences for each split; split -> parquet file."""
    paths = {split: str(folder / f"{split}.parquet") for split in SPLITS}
    for seed, path in enumerate(paths.values()):
        Dataset.from_dict(sentences(48, seed)).to_parquet(path)
    return paths


def settings_for(folder: Path, files: dict[str, str], model_type: str, **changes: Any) -> PruneConfig:
    """Saves a tiny model with its tokenizer and describes a small run on it, which ends in `folder / "out"`."""
    classifier = model_type == "bert"
    head = "AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM"
    tiny_model(model_type, head).save_pretrained(folder / "model")
    make_tokenizer("pair" if classifier else "plain").save_pretrained(folder / "model")
    text = {} if classifier else {"columns": {"text": "sentence"}, "max_length": 8}
    base: dict[str, Any] = {
        "model": {"name": str(folder / "model")},
        "task": {
            "dataset": {"path": "parquet", "data_files": files},
            "splits": {"test": "test"},
            "batch_size": 8,
            **text,
        },
        "prune": {"target": {"neurons": 0.5, "heads": 0.5}, "block_size": 8, "layout": "per_layer"},
        "search": {"rounds": 2, "pulls_per_arm": 2},
        "output": {"dir": str(folder / "out"), "random_seeds": 2},
    }
    for part, values in changes.items():
        base[part] = {**base[part], **values} if part in base and isinstance(values, dict) else values
    return check(base)
