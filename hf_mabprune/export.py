"""Export: from a stored checkpoint to what another program runs, checked before it is kept, and measured if asked."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.processors import Processor, processor_beside
from hf_mabprune.checks import check_around
from hf_mabprune.config import EvaluateConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.evaluation.report import installed_versions
from hf_mabprune.evaluation.served import Served, ServedFigures, measure_served, served_table
from hf_mabprune.exports import EXPORTS, Export
from hf_mabprune.progress import stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.runtime.places import Protected, check_output_dir
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of, encode_sample

FIGURES = "figures.json"
DENSE, PRUNED = "dense", "pruned"


@dataclass(frozen=True)
class Comparison:
    """What an export is measured on, and beside.

    Attributes:
        dense: Folder or Hub name of the dense model.
        settings: The checkpoint and its test data.
    """

    dense: str
    settings: EvaluateConfig


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        difference: Largest difference from the outputs of the model, as `Export.difference` gives it.
        metric: Main metric; empty where nothing was measured.
        figures: Model and program, e.g. "pruned, onnx" -> what it is worth there.
    """

    difference: float
    metric: str = ""
    figures: dict[str, ServedFigures] = field(default_factory=dict)

    def __str__(self) -> str:
        return served_table(self.metric, self.figures) if self.figures else ""


@stage("export")
def export_checkpoint(
    checkpoint: str | Path, to: str, output: str | Path, comparison: Comparison | None = None
) -> Exported:
    """Writes a checkpoint in another format into a folder of its own, tokenizer and config beside it.

    The folder is there when what was written gives the outputs of the model, and not before.

    Args:
        checkpoint: Folder or Hub name of a model, pruned or not.
        to: Name of a registered export.
        output: New folder.
        comparison: What to measure it on and beside, in torch, in this format and in those that lead to it; the
            figures are put into the folder too. None measures nothing.

    Raises:
        ValueError: If the export is unknown, lacks a package or cannot take the model, or its outputs differ from the
            model's; if it is to be measured, and model or data do not allow that.
        FileExistsError: If there is something at `output` already.
        OSError: If there is no such checkpoint, or nothing can be written.
    """
    destination = EXPORTS.get(to)
    destination.check_installed(to)
    export = destination()
    check_output_dir(output, False, [Protected("the checkpoint", Path(checkpoint), whole=True)])
    check_around(output)
    model = load_pruned(checkpoint, dtype=torch.float32).eval()
    export.check(model)
    processor = processor_beside(model, str(checkpoint))
    with atomic_folder(output) as folder:
        export.write(model, processor, folder)
        difference = export.difference(model, folder)
        if not difference <= export.tolerance:
            raise ValueError(
                f"export {to} of {checkpoint} does not give what the model gives: outputs differ by {difference:.3g}, "
                f"more than {export.tolerance:g}; nothing was kept"
            )
        exported = Exported(difference)
        if comparison:
            exported = _measured(exported, comparison, to, model, processor, folder)
            found = {name: asdict(figures) for name, figures in exported.figures.items()}
            told = {"metric": exported.metric, "versions": installed_versions(), "figures": found}
            (folder / FIGURES).write_text(json.dumps(told, indent=1))
        model.config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
    return exported


def _measured(
    exported: Exported,
    comparison: Comparison,
    to: str,
    model: PreTrainedModel,
    processor: Processor,
    folder: Path,
) -> Exported:
    """Measures both models in torch and in every format from the first step to the last."""
    settings, accelerator = comparison.settings, make_accelerator()
    splits = load_splits(settings.task, settings.seed)
    dense = load_pruned(comparison.dense, dtype=torch.float32).eval()
    task = build_task(settings.task, processor, dense.config, type(dense).__name__)
    test = encode_sample(task, splits["test"], settings.task.evaluation_examples, settings.seed)
    batches = batches_of(task, test, settings.task.batch_size, by_length=True)
    longest = min(max_positions(dense.config), max_positions(model.config))
    with tempfile.TemporaryDirectory(prefix="mabprune-") as work:
        models = {f"{name}, torch": Served(each, _weights(each)) for name, each in ((DENSE, dense), (PRUNED, model))}
        for step in _steps(to):
            for name, each in ((DENSE, dense), (PRUNED, model)):
                place = folder if name == PRUNED and step == to else Path(work, step, name)
                if place != folder:
                    place.mkdir(parents=True)
                    EXPORTS.get(step)().write(each, processor, place)
                models[f"{name}, {step}"] = _served(EXPORTS.get(step)(), place)
        figures = measure_served(models, task, batches, accelerator, longest)
    return Exported(exported.difference, task.main_metric, figures)


def _steps(to: str) -> list[str]:
    """Lists the exports that lead to one, from the first on."""
    before = EXPORTS.get(to).after
    return [*(_steps(before) if before else ()), to]


def _served(export: Export, folder: Path) -> Served:
    return Served(export.runner(folder), sum(file.stat().st_size for file in _files(folder)))


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _weights(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
