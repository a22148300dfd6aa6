"""Time of a pass as something that a target removes a part of: a table, measured where the model is to run.

Sites that are alike, one in each layer, are cut to the same few sizes all at once, and the smaller model is timed in
turns with the dense one. A site's part is the difference over their number; between the sizes that were measured lies
a straight line, and no smaller site takes longer than a larger one (isotonic regression). Attention and FFN of a layer
run one after the other, so their parts add up; what that leaves out shows in what is achieved, beside what was
predicted. Tables are kept on disk, and read where model, machine and conditions are the same.
Symbols: K arms; n arms of a site; u units of it.
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub.constants import HF_HOME
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from sklearn.isotonic import IsotonicRegression
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.arms import LAYER, ArmTable, Ints
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.config import LatencyTarget, PruningConfig
from hf_mabprune.progress import over, stage
from hf_mabprune.quantities.timing import check_timing, passes, ratio, undisturbed
from hf_mabprune.runtime.files import write_atomically
from hf_mabprune.runtime.processes import on_main
from hf_mabprune.selection.plan import Floats
from hf_mabprune.selection.target import Quantity
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.empty_layers import without_empty_layers

FORMAT = 1
SIZES = (0.75, 0.5, 0.25, 0.1)  # of a site that are measured, beside all of it and the least that it may keep
ACHIEVED = 20  # pairs of passes of the dense and the pruned model, in the end
SMALLEST = 1e-9  # of the dense model's time, that an arm counts at least
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        dense: Milliseconds of the dense model.
        sites: What sites have in common -> units that each of them kept, and milliseconds of the model then.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    dense: Positive
    sites: dict[str, list[tuple[Annotated[int, Field(ge=0)], Positive]]]


def latency_of(
    model: PreTrainedModel,
    arms: ArmTable,
    prune: PruningConfig,
    example: Mapping[str, torch.Tensor],
    processor: Processor,
    accelerator: Accelerator,
) -> Quantity:
    """Measures the time of a pass, and what goes of it with the arms of each site; or reads that.

    Args:
        model: Dense model.
        arms: All arms of the model.
        prune: Settings with the target, and the floors of sites.
        example: Inputs of one example.
        processor: Tokenizer or processor of the model.
        accelerator: Processes of the launch; the main one measures for all.

    Raises:
        ValueError: As `check_timing`.
    """
    asked = prune.target.latency
    assert asked is not None
    check_timing(model, asked)
    alike = _alike(model, arms)
    sizes = {name: _sizes(model, arms, sites, prune) for name, sites in alike.items()}
    key = _key(model, asked, example, sizes)
    measure = partial(_measure, model, alike, sizes, asked, example, processor)
    table = on_main(accelerator, lambda: _read(key) or _keep(key, measure()))
    return _quantity(arms, alike, table)


@stage("latency table")
def _measure(
    model: PreTrainedModel,
    alike: Mapping[str, Sequence[Site]],
    sizes: Mapping[str, Sequence[int]],
    asked: LatencyTarget,
    example: Mapping[str, torch.Tensor],
    processor: Processor,
) -> Table:
    """Times the model with all sites of one kind cut to one size, size after size."""
    todo = [(name, units) for name, own in sizes.items() for units in own]
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in alike}
    with passes(model, asked, example, processor) as dense:
        milliseconds = undisturbed(dense, dense)[0]
        for name, units in over(todo, "latency table", "sizes"):
            keep = {site.name: np.arange(units) for site in alike[name]}
            small = without_empty_layers(cut(model, keep, "per_layer", passing=True), passing=True)
            with passes(small, asked, example, processor) as pruned:
                whole, less = undisturbed(dense, pruned)
                found[name].append((units, milliseconds * less / whole))
    return Table(milliseconds, found)


def compared(
    dense: PreTrainedModel,
    small: PreTrainedModel,
    asked: LatencyTarget,
    example: Mapping[str, torch.Tensor],
    processor: Processor,
) -> float:
    """Says how long a pruned model takes to the dense one: median of twenty pairs, taken in turns."""
    with passes(dense, asked, example, processor) as one, passes(small, asked, example, processor) as other:
        return ratio(one, other, ACHIEVED)


def _alike(model: PreTrainedModel, arms: ArmTable) -> dict[str, list[Site]]:
    """Puts sites together that have the same place in their layers and the same size."""
    architecture = architecture_of(model)
    sites = {site.name: site for site in (*architecture.sites(model), *architecture.whole_layers(model))}
    alike: dict[str, list[Site]] = {}
    for name, _ in arms.groups():
        place = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        alike.setdefault(f"{place} {sites[name].kind} {sites[name].units}", []).append(sites[name])
    return alike


def _sizes(model: PreTrainedModel, arms: ArmTable, sites: Sequence[Site], prune: PruningConfig) -> list[int]:
    """Lists the numbers of units that are measured: whole arms, and none where all of these may go."""
    site = sites[0]
    rows = next(rows for name, rows in arms.groups() if name == site.name)
    widths = np.cumsum(arms.units[rows])
    floors = {"neuron": prune.min_neurons, "head": prune.min_heads, LAYER: 0}
    goes = not floors.get(site.kind, 1) and not any(architecture_of(model).least_units(model, each) for each in sites)
    least = [0] if goes or site.kind == LAYER else []
    near = {int(widths[np.argmin(np.abs(widths - share * widths[-1]))]) for share in SIZES}
    enough = max((architecture_of(model).least_units(model, each) for each in sites), default=0)
    return sorted({*(units for units in near if enough <= units < widths[-1]), *least}, reverse=True)


def _quantity(arms: ArmTable, alike: Mapping[str, Sequence[Site]], table: Table) -> Quantity:
    """Turns a table into what goes with each arm: on a straight line, and beside it."""
    cost, besides, rows = np.zeros(len(arms)), {}, dict(arms.groups())
    for name, sites in alike.items():
        for site in sites:
            own = rows[site.name]
            widths = np.concatenate([[0], np.cumsum(arms.units[own])])
            gone = gone_at(widths, table.dense, table.sites[name], len(sites))
            line = max(gone[0] / len(own), SMALLEST * table.dense)
            cost[own] = line
            besides[site.name] = gone - line * np.arange(len(own), -1, -1)
    return Quantity(table.dense, cost, besides=besides, unit="ms")


def gone_at(widths: Ints, dense: float, measured: Sequence[tuple[int, float]], sites: int) -> Floats:
    """Gives the time that has gone where a site keeps some of its units.

    Args:
        widths: [n + 1], units that are kept, the last of them all.
        dense: Time of the dense model.
        measured: Units that each of so many sites kept, and the time then.
        sites: Number of these sites.

    Returns:
        [n + 1], never more for more units; 0 for all of them.
    """
    units, times = zip(*[(int(widths[-1]), dense), *measured], strict=True)
    spared = (dense - np.array(times)) / sites
    weights = [1e6, *np.ones(len(measured))]  # that nothing has gone of the whole site is certain
    fitted = IsotonicRegression(increasing=False).fit(units, spared, sample_weight=weights)
    along = np.interp(widths, fitted.X_thresholds_, fitted.y_thresholds_)  # flat beyond what was measured
    gone: Floats = np.maximum(along - along[-1], 0.0)
    return gone


def _key(
    model: PreTrainedModel,
    asked: LatencyTarget,
    example: Mapping[str, torch.Tensor],
    sizes: Mapping[str, Sequence[int]],
) -> str:
    """Names what a table depends on: model, conditions, machine and programs, in a digest."""
    config = model.config.to_dict()
    on = {
        "format": FORMAT,
        "model": [type(model).__name__, {name: config[name] for name in config if not name.startswith("_name")}],
        "sizes": {name: list(own) for name, own in sizes.items()},
        "asked": asked.model_dump(exclude={"amount"}),
        "example": {name: list(value.shape) for name, value in example.items()},
        "machine": [platform.machine(), platform.node(), _processor(), torch.get_num_threads(), _card(model)],
        "versions": [_version(package) for package in ("torch", "transformers", "onnxruntime")],
    }
    return hashlib.sha256(json.dumps(on, sort_keys=True, default=str).encode()).hexdigest()


def _processor() -> str:
    """Names the processor, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _card(model: PreTrainedModel) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _place(key: str) -> Path:
    """Names the file of a table, among what Hugging Face's packages keep."""
    return Path(HF_HOME) / "hf_mabprune" / "latency" / f"{key}.json"


def _read(key: str) -> Table | None:
    """Reads a table that was kept; None where there is none, or none that can be read."""
    try:
        return TypeAdapter(Table).validate_json(_place(key).read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(key: str, table: Table) -> Table:
    """Keeps a table, where that can be written; gives it back."""
    try:
        _place(key).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_place(key), json.dumps(asdict(table), indent=1).encode())
    except OSError:  # a home that is read-only: the next run measures again
        pass
    return table
