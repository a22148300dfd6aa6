"""What cases are made from: tiny models, data, finished and interrupted runs, and what they give unharmed."""

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from datasets.utils import disable_progress_bars
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

from tests.cli.world import SPLITS, make_data, make_models, write_yaml
from tests.hostile.case import Case, Done, Step, prune
from tests.hostile.invariants import figures_of, result_of, warnings_in
from tests.hostile.workers import Worker

DATA = ("data/train.parquet", "data/validation.parquet", "data/test.parquet")
TWO_ROUNDS = {"search.rounds": 2, "search.pulls_per_arm": 2}
UNIFORM = {"prune.layout": "uniform", "prune.target": {"neurons": 0.5}}
STOP_AFTER_FIRST_SAVE = """
import os
from hf_mabprune.cli.commands import main
from hf_mabprune.runtime import resume
write = resume.write_atomically
def write_and_stop(path, content):
    write(path, content)
    if path.name.startswith("search_state"):
        os._exit(0)
resume.write_atomically = write_and_stop
main({command!r})
"""


def make_world(worker: Worker, folder: Path) -> dict[str, Any]:
    """Fills a folder, and gives the results of the unharmed runs by name.

    Args:
        worker: Runs the commands.
        folder: Empty folder, of which `worker` takes copies.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    make_models(folder / "models")
    make_data(folder / "data")
    teach(folder)
    (folder / "home").mkdir()
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("years of work")
    settings = {
        "run.yaml": TWO_ROUNDS,
        "uniform.yaml": TWO_ROUNDS | UNIFORM,
        "sizes.yaml": TWO_ROUNDS | {"prune.target": {"neurons": [0.25, 0.5], "heads": [0.25, 0.5]}},
        "magnitude.yaml": {"search": {"criterion": "magnitude"}},
        "llama.yaml": {"model.name": "models/llama", "task.columns": {"text": "sentence"}, "task.max_length": 8},
    }
    for name, changes in settings.items():
        write_yaml(folder / name, changes)
    data = ("models", "data", "home", *settings)
    references: dict[str, Any] = {}
    for name in settings:
        kind = name.removesuffix(".yaml")
        references[kind] = keep(worker, folder, kind, data, Step(prune(config=name)))
    stopped = STOP_AFTER_FIRST_SAVE.format(command=prune())
    keep(worker, folder, "waiting", data, Step(program=stopped))
    references["resumed"] = keep(worker, folder, "", (*data, "out.state"), Step(prune("--resume")))
    cut = ("cut", "run", "--target.parameters", "0.2", "--output.dir", "out")
    references["cut"] = keep(worker, folder, "", (*data, "run"), Step(cut))
    for kind, words in (("run", ()), ("uniform", ()), ("models/bert", ("--config", "run.yaml"))):
        needs = data if words else (*data, kind)
        done = once(worker, needs, Step(("evaluate", kind, "--json", *words)))
        references[f"evaluate {kind}"] = figures_of(done)
    references["warnings"] = worker.usual
    return references


def keep(worker: Worker, folder: Path, name: str, needs: tuple[str, ...], step: Step) -> dict[str, Any] | None:
    """Runs a step, takes what it left into the world under a name, and gives its result."""
    done = once(worker, needs, step)
    for made, kept in (("out", name), ("out.state", "out.state")):
        if name and (done.folder / made).exists():
            shutil.copytree(done.folder / made, folder / kept, symlinks=True)
    return result_of(done.folder / "out")


def once(worker: Worker, needs: tuple[str, ...], step: Step) -> Done:
    """Runs a step in a copy of what there is of the world."""
    worker.steps = getattr(worker, "steps", 0) + 1
    case = Case("prepared", (step,), needs=needs)
    done = worker.run(case, step, worker.make_folder(case, f"prepared{worker.steps}"))
    assert done.code == 0, done.text
    worker.usual |= set(warnings_in(done.text))
    return done


@torch.no_grad()
def teach(folder: Path) -> None:
    """Makes the model right on most of its data; as it was, it is `models/untaught`; all wrong is `data/swapped_*`."""
    shutil.copytree(folder / "models" / "bert", folder / "models" / "untaught")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "models" / "bert").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "bert")
    model.classifier.weight *= 20
    texts = {
        split: list(Dataset.from_parquet(str(folder / "data" / f"{split}.parquet"))["sentence"]) for split in SPLITS
    }
    inputs = {split: tokenizer(rows, padding=True, return_tensors="pt") for split, rows in texts.items()}
    logits = torch.cat([model(**batch).logits for batch in inputs.values()])
    model.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    model.save_pretrained(folder / "models" / "bert")
    for split, rows in texts.items():
        labels = model(**inputs[split]).logits.argmax(-1)
        labels[::8] = 1 - labels[::8]
        for name, shown in (("", labels), ("swapped_", 1 - labels)):
            content = {"sentence": rows, "label": shown.tolist()}
            Dataset.from_dict(content).to_parquet(str(folder / "data" / f"{name}{split}.parquet"))


def edit_yaml(path: Path, changes: dict[str, Any]) -> None:
    """Sets dotted keys in a YAML file."""
    tree = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *parts, last = key.split(".")
        part = tree
        for name in parts:
            part = part.setdefault(name, {})
        part[last] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
