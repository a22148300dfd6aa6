"""Trains a small model for every task and prunes it as the defaults do, beside five random draws of the same size.

Each task has a folder: `data`, `base`, `model`, `task.yaml` and `run`. What is there is not made again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from hf_mabprune import config
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import prune_from_config
from research.benchmarks.finetuning import Training, finetune
from research.studies.paper import train as tables
from research.studies.tasks import bases, rows

HALF = {"neurons": 0.5, "heads": 0.5}
PAIRS = {"text": "sentence1", "text_pair": "sentence2", "score": "score"}
TABLES = {"tabular_classification": "german_credit", "tabular_regression": "abalone"}
DRAWS = 5
USUAL = Training(epochs=2, learning_rate=2e-4, batch_size=32)


@dataclass(frozen=True)
class Study:
    """How a task is trained and pruned.

    Attributes:
        rows: Rows that are drawn for training.
        training: How the model is trained; None takes the base as it is.
        base: What is trained: part of an encoder, a Llama with a chat template, or a BART of random weights.
        task: Settings of the task beside type and data.
        target: What goes.
    """

    rows: int = 1000
    training: Training | None = USUAL
    base: str = "encoder"
    task: dict[str, Any] = field(default_factory=dict)
    target: dict[str, float] = field(default_factory=lambda: dict(HALF))


STUDIES = {
    "token_classification": Study(),
    "question_answering": Study(rows=1200, training=Training(epochs=3, learning_rate=4e-4, batch_size=16)),
    "masked_lm": Study(
        rows=1600, training=Training(epochs=1, learning_rate=1e-3, batch_size=32), task={"max_length": 64}
    ),
    "multi_label_classification": Study(task={"columns": {"text": "text", "label": "labels"}}),
    "regression": Study(rows=1500, task={"columns": {"text": "text", "text_pair": "text_pair", "label": "label"}}),
    "seq2seq": Study(
        rows=3000,
        training=Training(epochs=10, learning_rate=3e-3, batch_size=64),
        base="bart",
        task={"max_length": 32},
    ),
    "sentence_embedding": Study(training=None, task={"columns": PAIRS}),
    "reranking": Study(
        rows=300, task={"max_length": 48}, training=Training(epochs=2, learning_rate=3e-4, batch_size=8)
    ),
    "causal_lm": Study(rows=240, training=Training(epochs=1, learning_rate=5e-4, batch_size=8), base="llama"),
    **{task: Study(target={"neurons": 0.5}) for task in TABLES},
}
COUNTS = {"validation": 100, "test": 300}


@dataclass(frozen=True)
class Places:
    """Where texts, tables and base models are."""

    texts: Path
    tables: Path
    base: str
    llama: str


def make(name: str, places: Places, out: Path) -> Report:
    """Makes all of a task that is not there: rows, base, model, config and run.

    Args:
        name: Name of the task, one of `STUDIES`.
        places: Texts, tables and base models.
        out: Folder of all tasks.

    Returns:
        The report of the run.
    """
    study, folder = STUDIES[name], out / name
    if name in TABLES:
        there(folder / "model", lambda made: tables.make(places.tables, TABLES[name], 0, made))
        data = folder / "model" / "data"
    else:
        data = folder / "data"
        there(data, lambda made: write(rows.MAKERS[name], places.texts, {"train": study.rows, **COUNTS}, made))
        there(folder / "base", lambda made: make_base(study, places, data, made))
    model = folder / ("model" if study.training else "base")
    settings = settings_of(name, study, model, data, folder)
    if study.training and not model.exists():
        finetune(str(folder / "base"), model, config.check(settings), study.training)
    (folder / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run = folder / "run"
    if not run.exists():
        prune_from_config(config.check(settings), resume=(folder / "run.partial").exists())
    return Report.from_json(RunFolder(run).report)


def there(folder: Path, make: Callable[[Path], Any]) -> None:
    """Makes a folder that is not there."""
    if not folder.exists():
        make(folder)


def write(maker: rows.Maker, texts: Path, counts: dict[str, int], out: Path) -> None:
    """Writes the rows of a task, a parquet file for each split."""
    made = rows.splits(maker, texts, counts)
    out.mkdir(parents=True)
    for split, dataset in made.items():
        dataset.to_parquet(str(out / f"{split}.parquet"))


def make_base(study: Study, places: Places, data: Path, out: Path) -> None:
    """Makes what a task's model is trained from."""
    if study.base == "bart":
        bases.bart(list(Dataset.from_parquet(str(data / "train.parquet"))["target"]), out)
    elif study.base == "llama":
        bases.chatting(places.llama, out)
    else:
        bases.encoder(places.base, out)


def settings_of(name: str, study: Study, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Gives the settings of a run, all else being defaults."""
    parts = {"calibration": "train", "validation": "validation", "test": "test"}
    files = {split: str(data / f"{split}.parquet") for split in parts.values()}
    task = {"type": name, "dataset": {"path": "parquet", "data_files": files}, "splits": parts}
    return {
        "model": {"name": str(model)},
        "task": {**task, "calibration_examples": 128, **study.task},
        "prune": {"arms": ["neuron", "head"], "target": study.target, "layout": "per_layer"},
        "output": {"dir": str(folder / "run"), "random_seeds": DRAWS},
    }


def table(reports: dict[str, Report]) -> str:
    """Makes the table of all tasks: the main metric, and the KL divergence from the dense model."""
    lines = [
        "| task | gone | metric | dense | the default | five random draws | KL: the default | the draws |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: | --- |",
    ]
    for name, report in reports.items():
        metric = report.main_metric
        draws = [draw.figures for draw in report.random]
        values, kls = [each.metrics[metric] for each in draws], [each.kl or 0.0 for each in draws]
        shown = [
            f"`{name}`",
            f"{report.removed_fraction():.0%}",
            metric,
            f"{report.before.metrics[metric]:.4g}",
            f"{report.after.metrics[metric]:.4g}",
            in_words(values),
            f"{report.after.kl:.3g}",
            in_words(kls, digits=3),
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def in_words(values: Sequence[float], digits: int = 4) -> str:
    """Gives mean, lowest and highest."""
    mean = sum(values) / len(values)
    return f"{mean:.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"
