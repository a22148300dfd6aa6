"""The networks of the study that methods prune: trained once for each split of a table, and kept."""

import json
from dataclasses import dataclass
from pathlib import Path

from hf_mabprune.checkpoints.table_processor import TableProcessor
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.tasks.base import Task
from research.models.training import save
from research.studies.paper.mlp import TabularMLP
from research.studies.paper.rows import A_STEP
from research.studies.paper.tables import Split, Table
from research.studies.paper.train import RECIPE, fit, long_enough, model_class, task_of

FIGURES = "figures.json"


@dataclass(frozen=True)
class Network:
    """Holds a trained network.

    Attributes:
        model: Network in evaluation mode.
        task: Its task, with the processor that was fitted on its training rows.
        seconds: Seconds of its training.
        tokens: Rows that its training sent forward, `A_STEP` times.
    """

    model: TabularMLP
    task: Task
    seconds: float
    tokens: int


def network(table: Table, number: int, split: Split, folder: Path) -> Network:
    """Reads the network of a split, or trains it, where there is none yet.

    Args:
        table: Table.
        number: Number of the split.
        split: The split.
        folder: Folder of all networks.
    """
    place = folder / f"{table.name}-{number}"
    if not place.is_dir():
        model, task, minutes = fit(table, split)
        rows = long_enough(RECIPE, len(split.train)).steps * min(RECIPE.batch_size, len(split.train))
        with atomic_folder(place) as work:
            save(model, task.processor, {"seconds": 60 * minutes, "tokens": A_STEP * rows}, work)
    model = model_class(table).from_pretrained(place).eval()
    figures = json.loads((place / FIGURES).read_text(encoding="utf-8"))
    task = task_of(model, TableProcessor.from_pretrained(place))
    return Network(model, task, figures["seconds"], figures["tokens"])
