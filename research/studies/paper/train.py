"""Trains an MLP on one split of a table, and writes it with the three data sets that a run reads.

python -m research.studies.paper.train --data DIR --table german_credit --out runs/models/german_credit
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hf_mabprune.checkpoints.table_processor import TableProcessor
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.lookup import build_task
from research.models.training import Figures, Recipe, command_line, save
from research.studies.paper.fitting import all_rows, train_on
from research.studies.paper.mlp import (
    TabularMLP,
    TabularMLPConfig,
    TabularMLPForClassification,
    TabularMLPForRegression,
)
from research.studies.paper.tables import (
    FOLDS,
    LABEL,
    REPEATS,
    Split,
    Table,
    data_sets,
    processor_of,
    read_table,
    splits,
)

RECIPE = Recipe(steps=800, batch_size=32, learning_rate=1e-3, weight_decay=1.0, bfloat16=False)
PASSES = 25  # over the training rows, at least


def fit(table: Table, split: Split, recipe: Recipe = RECIPE, **sizes: int) -> tuple[TabularMLP, Task, float]:
    """Trains an MLP on the training rows of a split.

    Args:
        table: Table.
        split: One of its splits.
        recipe: How it is trained; of many rows, longer (`long_enough`).
        sizes: Fields of the configuration that differ from its defaults.

    Returns:
        The model in evaluation mode, its task with the fitted processor, and the minutes of training.
    """
    set_seed(recipe.seed)
    model, task = untrained(table, split, **sizes)
    rows = all_rows(task, data_sets(table, split)["train"])
    return model, task, train_on(model, rows, long_enough(recipe, rows.examples))


def long_enough(recipe: Recipe, rows: int) -> Recipe:
    """Gives a recipe as many steps as `PASSES` over so many rows take, if it has fewer."""
    return replace(recipe, steps=max(recipe.steps, math.ceil(PASSES * rows / recipe.batch_size)))


def untrained(table: Table, split: Split, **sizes: int) -> tuple[TabularMLP, Task]:
    """Makes an MLP for a table, and its task with the processor that is fitted on the training rows of a split.

    Args:
        table: Table.
        split: One of its splits.
        sizes: Fields of the configuration that differ from its defaults.
    """
    processor = processor_of(table, split)
    labels: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if table.classifies:
        names = dict(enumerate(table.classes))
        labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    settings: dict[str, Any] = {"num_features": len(processor), **labels, **sizes}
    config = TabularMLPConfig(**settings)
    model = model_class(table)(config)
    return model, task_of(model, processor)


def model_class(table: Table) -> type[TabularMLP]:
    """Gives the class of models for a table."""
    return TabularMLPForClassification if table.classifies else TabularMLPForRegression


def task_of(model: TabularMLP, processor: TableProcessor) -> Task:
    """Makes the task of a model, with the processor that was fitted for it."""
    described = TaskConfig(dataset=DatasetConfig(path="in-memory"), columns={"label": LABEL})
    return build_task(described, processor, model.config, type(model).__name__)


@torch.inference_mode()
def measure(model: TabularMLP, task: Task, table: Table, split: Split, part: str) -> dict[str, float]:
    """Measures a model by the metrics of its task on `train`, `validation` or `test`."""
    batch = all_rows(task, data_sets(table, split)[part])
    return task.compute_metrics(task.readout(model, batch).scores())


def make(data: Path, name: str, number: int, out: Path, recipe: Recipe = RECIPE) -> Figures:
    """Trains a model and writes it to a folder, its data sets below `data/`.

    Args:
        data: Folder of the tables.
        name: Name of the table.
        number: Number of the split, from 0 to 9.
        out: Folder of the trained model.
        recipe: How it is trained.

    Returns:
        What was measured, as in figures.json.
    """
    table = read_table(data, name)
    split = list(splits(table))[number]
    model, task, minutes = fit(table, split, recipe)
    for part, rows in data_sets(table, split).items():
        rows.to_parquet(out / "data" / f"{part}.parquet")
    figures: Figures = {"minutes": round(minutes, 2), "training_rows": len(split.train)}
    figures["steps"] = long_enough(recipe, len(split.train)).steps
    figures |= {part: measure(model, task, table, split, part) for part in ("validation", "test")}
    save(model, task.processor, figures, out)
    return figures


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the tables, with index.json")
    parser.add_argument("--table", required=True, help="name of the table")
    parser.add_argument("--split", type=int, choices=range(FOLDS * REPEATS), default=0, help="number of the split")
    options = parser.parse_args()
    make(options.data, options.table, options.split, options.out, replace(RECIPE, seed=options.seed))
