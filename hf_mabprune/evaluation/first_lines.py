"""What a person sees before a search: the model and where it runs, and what the dense model reaches."""

from collections.abc import Sequence

from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import KINDS, ArmTable
from hf_mabprune.evaluation.figures import VocabularyFigures
from hf_mabprune.evaluation.quality import Evaluation
from hf_mabprune.tasks.base import Task


def header(model: PreTrainedModel, arms: ArmTable, accelerator: Accelerator) -> str:
    """The model, its arms and where it runs, in one line."""
    names = {"neuron": ("neurons", "neuron blocks"), "head": ("heads", "key-value groups"), "expert": ("experts", "")}
    names["layer"] = ("layers that may go", "")
    counts = [
        f"{len(rows):,} {names[kind][int(arms.units[rows].max()) > 1]}"
        for kind in KINDS
        if len(rows := arms.of_kind(kind))
    ]
    processes = f" x {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    where = f"{accelerator.device} {str(model.dtype).removeprefix('torch.')}{processes}"
    return " | ".join([model.config.model_type, f"{len(architecture_of(model).layers(model))} layers", *counts, where])


def baseline(
    task: Task, dense: Evaluation, doubts: Sequence[str] = (), vocabulary: VocabularyFigures | None = None
) -> str:
    """What the dense model reaches: a wrong head or wrong labels are seen before the search.

    Args:
        task: Task of the model.
        dense: The dense model on the test split.
        doubts: What is wrong with it, a line each.
        vocabulary: What went of its vocabulary before.
    """
    low, high = dense.intervals[task.main_metric]
    line = (
        f"dense: {task.main_metric} {dense.metrics[task.main_metric]:.4g} ({low:.4g}-{high:.4g}), "
        f"loss {dense.loss:.3f} on {len(dense.scores.losses):,} test examples"
    )
    return "\n".join(
        [*([f"vocabulary: {vocabulary}"] if vocabulary else []), line, *(f"warning: {doubt}" for doubt in doubts)]
    )
