"""Verification of a run's folder: whether its files are what they say they are, found out without running any code of
theirs; `mabprune verify`.

Each check is a function that says what holds, raises `NotChecked` where it cannot tell, and any other exception where
something is wrong.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of
from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.arms import LAYER, ArmTable
from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts.fit import (
    CONFIG,
    check_code,
    fitted_model,
    is_per_layer,
    refuse_not_finite,
    stored_tensors,
)
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checkpoints.modeling_pruned import TYPE_PREFIX
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.checkpoints.stored_files import read_json
from hf_mabprune.config import PruneConfig
from hf_mabprune.errors import in_words
from hf_mabprune.evaluation.report import Report
from hf_mabprune.progress import stage
from hf_mabprune.tasks.base import TASKS

FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SHOWN = 3  # faults that a line names
Outcome = Literal["ok", "FAILED", "not checked"]


class NotChecked(Exception):
    """The reason why a check cannot tell."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: What was checked.
        outcome: Whether it holds, does not, or could not be told.
        detail: What holds, what is wrong, or why it could not be told.
    """

    name: str
    outcome: Outcome
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}{f': {self.detail}' if self.detail else ''}"


def checked(name: str, look: Callable[[], str]) -> Check:
    """Runs one check; whatever it raises is its outcome."""
    try:
        return Check(name, "ok", look())
    except NotChecked as reason:
        return Check(name, "not checked", str(reason))
    except Exception as error:  # files from outside raise anything
        return Check(name, "FAILED", in_words(error))


@stage("verification")
def verify(
    folder: str | Path, settings_of: Callable[[Path], PruneConfig], further: "Further | None" = None
) -> list[Check]:
    """Checks the folder of a run, or of each of its sizes.

    Args:
        folder: Folder that a run wrote, here or elsewhere.
        settings_of: Reads the settings that a folder holds, as data.
        further: Checks that are made of every checkpoint besides, with its folder and what was read of it.

    Returns:
        What each check found; the names of those of one of several sizes begin with that of the size.

    Raises:
        ValueError: If the folder holds no run.
    """
    run = RunFolder(folder)
    if not run.details.is_dir():
        raise ValueError(f"{folder} holds no folder {run.details.name}, so no run wrote it: give the output of a run")
    if not (sizes := run.sizes()):
        return _verify_one(run, settings_of, further)
    checks = [checked("checksums", partial(_unchanged, run))]
    for size in sizes:
        found = _verify_one(size, settings_of, further)
        checks += [Check(f"{size.root.name}: {check.name}", check.outcome, check.detail) for check in found]
    return checks


@dataclass(frozen=True)
class Parts:
    """What can be read of a run's folder.

    Attributes:
        run: The folder.
        settings: Settings of the run.
        report: Its report.
        arms: All arms of the dense model.
        kept: [K], those that stay.
    """

    run: RunFolder
    settings: PruneConfig
    report: Report
    arms: ArmTable
    kept: np.ndarray


Further = Callable[[Parts], Iterator[Check]]


def _verify_one(run: RunFolder, settings_of: Callable[[Path], PruneConfig], further: Further | None) -> list[Check]:
    """Checks one checkpoint with what a run wrote beside it."""
    parts: list[Parts] = []

    def read() -> str:
        parts.append(read_parts(run, settings_of(run.root)))
        return f"settings, report and {len(parts[0].arms):,} arms can be read"

    checks = [
        checked("checksums", partial(_unchanged, run)),
        checked("code", partial(check_code, run.root)),
        checked("weights", partial(_whole, run.root)),
        checked("shapes", partial(_fitting, run.root)),
        checked("details", read),
    ]
    for name, look in (
        ("processor", _processor),
        ("report and config", _same_run),
        ("report and arms", _same_arms),
        ("report and weights", _same_figures),
        ("report's numbers", _finite_report),
    ):
        checks.append(checked(name, partial(look, parts[0])) if parts else _skipped(name))
    if further is not None:
        checks += further(parts[0]) if parts else [_skipped("base")]
    return checks


def _skipped(name: str) -> Check:
    return Check(name, "not checked", "settings, report or arms cannot be read")


def read_parts(run: RunFolder, settings: PruneConfig) -> Parts:
    """Reads report and arms of one checkpoint.

    Raises:
        ValueError: If one of them cannot be read, or is not of this version.
    """
    table, report = run.read()
    fields = {name: table[name].to_numpy() for name in ArmTable.__dataclass_fields__}
    kept = table["kept"].to_numpy()
    if kept.dtype != bool:
        raise ValueError(f"{run.arms}: kept must be true or false, got {kept.dtype}")
    return Parts(run, settings, report, ArmTable(**fields), kept)


def _unchanged(run: RunFolder) -> str:
    """Compares all files with their checksums."""
    if found := checksums.faults(run.root, run.checksums):
        raise ValueError(some(found))
    return f"{len(checksums.read(run.root, run.checksums)):,} files are as they were written"


def _whole(folder: Path) -> str:
    """Reads all weights: the files end where their headers say, and every number is finite."""
    tensors = stored_tensors(folder)
    wanted = str(read_json(folder / CONFIG).get("dtype"))
    others = [name for name, stored in tensors.items() if stored.dtype in FLOATS and precision(stored.dtype) != wanted]
    if others:
        raise ValueError(f"{some(others)}: not in {wanted}, as config.json says")
    refuse_not_finite(folder)
    return f"{len(tensors):,} tensors, whole and finite, in {wanted}"


def precision(dtype: str) -> str:
    """Gives torch's name of a floating-point type of safetensors: float32 for F32."""
    return str(FLOATS[dtype]).removeprefix("torch.")


def _fitting(folder: Path) -> str:
    """Compares all shapes with those of the model that the config says."""
    count = len(stored_tensors(folder))
    _known_model(folder)
    return f"all {count:,} tensors have the shapes that config.json says, none is missing, none is left over"


def _known_model(folder: Path) -> PreTrainedModel:
    """Builds the model that a config says, on the meta device, where its type is known here."""
    if (family := _family(folder)) not in ARCHITECTURES.names():
        raise NotChecked(f"model type '{family:.80}' is not known here: name the plugin that has it (--plugin FILE)")
    return fitted_model(folder)


def _family(folder: Path) -> str:
    """Reads the stock model type of a checkpoint."""
    return str(read_json(folder / CONFIG).get("model_type")).removeprefix(TYPE_PREFIX)


def _processor(parts: Parts) -> str:
    """Reads the tokenizer or processor that the task needs."""
    reader = TASKS.get(parts.report.task).processor_class
    if reader is None:
        raise NotChecked("the task needs none")
    return f"{type(load_processor(reader, str(parts.run.root))).__name__} can be read"


def _same_run(parts: Parts) -> str:
    """Compares report, settings and config.json, as far as they say the same things."""
    report, settings = parts.report, parts.settings
    stored = read_json(parts.run.root / CONFIG)
    said = {
        "model": (report.model, settings.model.name),
        "seed": (report.seed, settings.seed),
        "target": (report.target, settings.prune.target.amounts()),
        "dataset": (report.dataset, settings.task.dataset.path),
        "task": (report.task, settings.task.type or report.task),
        "layout": (report.layout, "per_layer" if is_per_layer(stored) else "uniform"),
        "layout asked for": (
            report.layout, report.layout if settings.prune.layout == "auto" else settings.prune.layout,
        ),
        "architecture": (report.architecture.removeprefix(TYPE_PREFIX), _family(parts.run.root)),
        "compensation": ((report.compensation or {}).get("name", settings.compensation), settings.compensation),
        "recovery": (report.recovery is not None, settings.recovery is not None),
    }  # fmt: skip
    if wrong := [f"{what} is {one!r} and {other!r}" for what, (one, other) in said.items() if one != other]:
        raise ValueError(some(wrong))
    return ", ".join(said)


def _same_arms(parts: Parts) -> str:
    """Compares what the report says is kept with the arms."""
    report, arms = parts.report, parts.arms
    counts: dict[str, dict[str, tuple[int, int]]] = {kind: {} for kind in arms.kinds()}
    for site, rows in arms.groups():
        kept = int(arms.units[rows[parts.kept[rows]]].sum())
        counts[str(arms.kind[rows[0]])][site] = (kept, int(arms.units[rows].sum()))
    if counts != {kind: dict(sites) for kind, sites in report.kept.items()}:
        raise ValueError("the report keeps other units than arms.parquet")
    if report.search.arms != len(arms):
        raise ValueError(f"the report has {report.search.arms:,} arms, arms.parquet {len(arms):,}")
    return f"{int(parts.kept.sum()):,} of {len(arms):,} arms stay, in both"


def _same_figures(parts: Parts) -> str:
    """Compares what the report says of the checkpoint with its files: sizes of sites, parameters, bytes."""
    report, model = parts.report, _known_model(parts.run.root)
    sites = architecture_of(model).sites(model, empty=True)
    wrong = []
    for kind, counts in report.kept.items():
        if kind == LAYER or (kind == "neuron" and "expert" in report.kept):
            continue
        # Layers without a unit may be gone, and those behind have other numbers; the order of the rest stays.
        left = [(name, units) for name, (units, _) in counts.items() if units]
        there = [site.units for site in sites if site.kind == kind and site.units]
        if len(left) != len(there):
            wrong.append(f"{len(there):,} sites have {kind}s, not {len(left):,}")
        for (name, units), found in zip(left, there, strict=False):
            if units != found:
                wrong.append(f"{name} has {found:,} {kind}s, not {units:,}")
    for name, count in count_parameters(model).items():
        if getattr(report.after, name) != count:
            wrong.append(f"{name} are {count:,}, not {getattr(report.after, name):,}")
    files = {stored.file for stored in stored_tensors(parts.run.root).values()}
    if (size := sum(file.stat().st_size for file in files)) != report.after.checkpoint_bytes:
        wrong.append(f"the weights have {size:,} bytes, not {report.after.checkpoint_bytes:,}")
    if wrong:
        raise ValueError(some(wrong))
    return f"{report.after.parameters:,} parameters, {size:,} bytes, and the units of every site"


def _finite_report(parts: Parts) -> str:
    """Looks for numbers in the report that are none."""
    if wrong := list(_not_finite(asdict(parts.report))):
        raise ValueError(f"{some(wrong)}: no finite number")
    return "all are finite"


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Names the places of nested data where a number is not finite."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _not_finite(part, f"{place}.{name}" if place else str(name))
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _not_finite(part, f"{place}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def some(faults: Sequence[str]) -> str:
    """Names the first faults, and counts the others."""
    more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more
