"""Sparse checkpoints: from a stored checkpoint to one with zeros, measured, which AutoModel loads."""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts.redaction import hub_model, last_part
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.sparsity_report import FileSizes, SparsityReport
from hf_mabprune.artifacts.stored import OpenedCheckpoint, figures_of, open_checkpoint
from hf_mabprune.checkpoints.embedding_files import EmbeddingFiles
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.processors import Processor, processor_beside
from hf_mabprune.checkpoints.save import round_weights, save_checkpoint
from hf_mabprune.checks import check_around
from hf_mabprune.config import ModelConfig, SparsifyConfig
from hf_mabprune.evaluation.latency import measure_latency
from hf_mabprune.evaluation.quality import evaluate, forward_of, paired_difference
from hf_mabprune.progress import stage
from hf_mabprune.recovery.recover import RecoveryFigures, check_losses, check_recovery, recover
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.runtime.places import Protected, check_output_dir
from hf_mabprune.session import calibration_batches, saved_precision, stored_config
from hf_mabprune.sparsity.sparsity import check_options, sparsify
from hf_mabprune.tasks.batch import Batch, typical_example
from hf_mabprune.tasks.lookup import task_for_model
from hf_mabprune.tasks.sampling import encode_sample


@stage("sparsity")
def sparsify_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    rate: float,
    *,
    kind: str = "unstructured",
    criterion: str = "magnitude",
    scope: str | None = None,
    exclude: Sequence[str] = (),
    head: bool = False,
    seed: int = 0,
    data: SparsifyConfig | None = None,
    overwrite: bool = False,
) -> SparsityReport:
    """Writes a checkpoint with zeros into a folder of its own: weights, config, processor, card and figures.

    The file is no smaller and the dense model no faster; the card says so. The folder is there once what was written
    reads back weight by weight, and not before.

    Args:
        checkpoint: Folder or Hub name of a model, pruned or not.
        output_dir: Folder of the result.
        rate, kind, criterion, scope, exclude, head, seed: As in `sparsity.sparsify`.
        data: What first_order ranks by, what recovery trains on under the masks, and what both models are measured
            on; its `model.name` is the checkpoint's. None measures the files alone.
        overwrite: Whether an earlier output is replaced.

    Returns:
        What was done and measured.

    Raises:
        ValueError: For options, a model or data that cannot work.
        FileExistsError: If something is at `output_dir` that may not be replaced.
        OSError: If model or data cannot be read, or nothing can be written.
        RuntimeError: If what was written does not read back.
    """
    check_options(rate, kind, criterion, scope, data is not None)
    _check(checkpoint, output_dir, overwrite, data)
    source = _open(str(checkpoint), data)
    model, opened = source.model, source.opened
    with atomic_folder(output_dir) as root:
        before_files = source.save(root / "dense")
        shutil.rmtree(root / "dense")
        dense = copy.deepcopy(model) if opened else None
        calibration = _calibration(opened) if opened and criterion == "first_order" else {}
        asked: dict[str, Any] = {
            "kind": kind,
            "criterion": criterion,
            "exclude": list(exclude),
            "head": head,
            "seed": seed,
        }
        sparsity = sparsify(model, rate, scope=scope, **asked, **calibration)
        recovery = _recover(opened, dense) if opened and dense else None
        sparsity.make_permanent()
        round_weights(model, source.dtype)
        measured = _measure(opened, dense) if opened and dense else {}
        folder = RunFolder(root)
        after_files = source.save(folder.root)
        for row, files in (("before", before_files), ("after", after_files)):
            if row in measured:
                measured[row] = replace(measured[row], checkpoint_bytes=files.stored)
        _read_back(model, folder.root, source.settings.trust_remote_code)
        report = SparsityReport(
            model=hub_model(str(checkpoint)) or last_part(str(checkpoint)),
            model_class=type(model).__name__,
            scope=sparsity.scope,
            rate=rate,
            zeros=sparsity.zeros,
            weights=sparsity.weights,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            modules=sparsity.rates,
            left_out=sparsity.left_out,
            before_files=before_files,
            after_files=after_files,
            recovery=asdict(recovery) if recovery else None,
            **asked,
            **measured,
        )
        report.write(folder)
        checksums.write(folder.root, folder.checksums)
    return report


@dataclass(frozen=True)
class _Source:
    """A stored model, with the data of a config where there is one.

    Attributes:
        settings: Where it lies, and how it is read.
        dtype: Precision of its weights on disk.
        beside: Further files of the folder, by name below it.
    """

    settings: ModelConfig
    model: PreTrainedModel
    processor: Processor
    dtype: torch.dtype
    beside: dict[str, str]
    opened: OpenedCheckpoint | None = None

    def save(self, folder: Path) -> FileSizes:
        """Writes the model as it is now, and measures its files of weights."""
        save_checkpoint(self.model, folder, self.processor, self.dtype, self.beside)
        return FileSizes.of(sorted(folder.glob("*.safetensors")))


def _check(checkpoint: str | Path, output_dir: str | Path, overwrite: bool, data: SparsifyConfig | None) -> None:
    """Refuses what can be refused before anything is loaded."""
    protected = [Protected("the checkpoint", Path(checkpoint), whole=True)]
    if data is not None:
        protected.append(Protected("the data", Path(data.task.dataset.path), whole=True))
        if data.recovery:
            check_recovery(data.recovery, 1)
    check_output_dir(output_dir, overwrite, protected)
    check_around(output_dir)


def _open(checkpoint: str, data: SparsifyConfig | None) -> _Source:
    """Loads a checkpoint in float32, with the head of the task where there are data."""
    if data is None:
        settings = ModelConfig(name=checkpoint)
        model = load_pruned(checkpoint, dtype=torch.float32).eval()
        files = EmbeddingFiles.read(checkpoint)
        beside, processor, opened = files.contents if files else {}, processor_beside(model, checkpoint), None
    else:
        settings = data.model.model_copy(update={"name": checkpoint})
        opened = open_checkpoint(data.model_copy(update={"model": settings}))
        model, processor, beside = opened.model, opened.processor, opened.task.side_files()
        if data.recovery:
            check_losses(data.recovery, opened.task, model)
    dtype = saved_precision(settings, stored_config(settings), model.dtype)
    return _Source(settings, model, processor, dtype, beside, opened)


def _calibration(opened: OpenedCheckpoint) -> dict[str, Any]:
    """Gives the batches and the loss that first_order ranks by, as arguments of `sparsify`."""
    task, settings = opened.task, opened.settings
    if not task.has_loss:
        raise ValueError("criterion first_order takes data with labels: name them in task.columns, or take magnitude")

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return task.readout(cast(PreTrainedModel, model), batch.to(opened.accelerator.device)).losses().mean()

    batches = calibration_batches(settings.task, task, opened.splits["calibration"], settings.seed)["calibration"]
    return {"batches": batches, "loss": loss}


def _recover(opened: OpenedCheckpoint, dense: PreTrainedModel) -> RecoveryFigures | None:
    """Trains under the masks, where the settings ask for it."""
    settings = opened.settings
    if not isinstance(settings, SparsifyConfig) or settings.recovery is None:
        return None
    examples = encode_sample(opened.task, opened.splits["calibration"], settings.recovery.examples, settings.seed)
    return recover(
        opened.model, dense, opened.task, examples, settings.recovery, opened.accelerator, seed=settings.seed
    )


@stage("evaluation")
def _measure(opened: OpenedCheckpoint, dense: PreTrainedModel) -> dict[str, Any]:
    """Measures both models on the test split, as arguments of the report."""
    task, sparse, batches = opened.task, opened.model, opened.test_batches()
    original = forward_of(dense, task, batches)
    before = evaluate(original, task, batches, opened.accelerator)
    after = evaluate(forward_of(sparse, task, batches), task, batches, opened.accelerator, original)
    times = measure_latency([dense, sparse], task, batches[len(batches) // 2])
    example = task.inputs(typical_example(batches))
    difference = paired_difference(task.main_metric, after, before)
    # Where a task has no loss, it is the divergence from the dense model.
    figures = [
        replace(figures_of(model, task, found, example, time), loss=found.loss)
        for model, found, time in ((dense, before, times[0]), (sparse, after, times[1]))
    ]
    return {
        "task": opened.settings.task.type or task_for_model(type(dense).__name__, dense.config),
        "main_metric": task.main_metric,
        "before": replace(figures[0], behind=difference),
        "after": replace(figures[1], kl=float(after.kl.mean())),
    }


def _read_back(model: PreTrainedModel, folder: Path, trust_remote_code: bool) -> None:
    """Refuses a checkpoint that does not hold every weight as it is in memory, zeros among them."""
    stored = load_pruned(folder, dtype=torch.float32, trust_remote_code=trust_remote_code).state_dict()
    there = model.state_dict()
    changed = [name for name in there if name not in stored or not torch.equal(there[name].cpu(), stored[name])]
    if changed or stored.keys() != there.keys():
        place = [*changed, "its names"][0]
        raise RuntimeError(f"the saved checkpoint differs from the model in memory at {place}; nothing was written")
