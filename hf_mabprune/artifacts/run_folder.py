"""The folder that a run leaves behind: checkpoint, report, table of arms, figures and model card."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune.artifacts import card as model_card
from hf_mabprune.artifacts import plots
from hf_mabprune.checkpoints.load import reload_difference
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.evaluation.comparison import Session
from hf_mabprune.evaluation.report import Report

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # on reloaded logits, by precision of the model in memory
HALF_TOLERANCE = 0.1
DETAILS = "mabprune"


def save_weights(
    report: Report,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    save_dtype: torch.dtype,
    session: Session,
    folder: Path,
) -> Report:
    """Writes a checkpoint and reads it back.

    Returns:
        The report, with the figures of the files on disk.

    Raises:
        RuntimeError: If the checkpoint does not give the logits of the model in memory.
    """
    folder.mkdir(exist_ok=True)
    size = save_checkpoint(model, folder, tokenizer, save_dtype)
    return replace(
        report,
        before=replace(report.before, checkpoint_bytes=report.before.parameters * save_dtype.itemsize),
        after=replace(report.after, checkpoint_bytes=size),
        reload={"max_logit_difference": _reload(model, folder, session)},
    )


def write_views(report: Report, arms: pd.DataFrame, config_yaml: str, folder: Path) -> None:
    """report.json, arms.parquet, config.yaml, the figures and the model card."""
    details = folder / DETAILS
    details.mkdir(exist_ok=True)
    (details / "config.yaml").write_text(config_yaml)
    (details / "report.json").write_text(report.to_json())
    arms.to_parquet(details / "arms.parquet")
    plots.save_figures(report, arms, folder / "figures")
    model_card.write_card(report, config_yaml, folder)


def write_overview(reports: Sequence[Report], config_yaml: str, folder: Path) -> None:
    """README.md, figure and config of a folder that holds several sizes, each in a folder of its own."""
    details = folder / DETAILS
    details.mkdir(exist_ok=True)
    (details / "config.yaml").write_text(config_yaml)
    plots.save_pareto(reports[-1], folder / "figures")
    model_card.write_overview(reports, folder)


def _reload(model: PreTrainedModel, folder: Path, session: Session) -> float:
    batch = {name: tensor.to(model.device) for name, tensor in session.batches["test"][-1].items()}
    difference = reload_difference(model, folder, session.task.auto_class, session.task.inputs(batch))
    if difference > TOLERANCE.get(model.dtype, HALF_TOLERANCE):
        raise RuntimeError(
            f"the saved checkpoint differs from the model in memory by {difference:.2g} on logits; nothing was written"
        )
    return difference
