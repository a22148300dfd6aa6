"""Makes a checkpoint again: cuts the base as the run did, refits it where the data are there, and saves that."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.artifacts.fit import StoredTensor, read_tensor, read_tensors, stored_tensors
from hf_mabprune.artifacts.verification import FLOATS, Parts, some
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.checkpoints.save import round_weights, save_checkpoint
from hf_mabprune.compensation import make_compensation
from hf_mabprune.compensation.input_side import made_by
from hf_mabprune.config import PruneConfig
from hf_mabprune.progress import over
from hf_mabprune.session import Session
from hf_mabprune.surgery.biases import declare_biases, may_have_bias
from hf_mabprune.surgery.cut import cut, kept_units
from hf_mabprune.surgery.empty_layers import without_empty_layers
from hf_mabprune.tasks.lookup import build_task


@dataclass
class Made:
    """A checkpoint that was made again.

    Attributes:
        folder: Where it lies.
        tensors: Its tensors.
        not_sliced: Names of those that are no plain slices.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    not_sliced: set[str]

    def pairs(self, root: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Goes through the tensors that both checkpoints have in the same shape: name, stored, made again."""
        theirs = stored_tensors(root)
        for name, tensor in over(sorted(self.tensors.items()), "comparison", "tensors"):
            if name in theirs and (theirs[name].shape, theirs[name].dtype) == (tensor.shape, tensor.dtype):
                yield name, read_tensor(name, theirs[name]), read_tensor(name, tensor)


def remake(
    parts: Parts,
    settings: PruneConfig,
    dense: PreTrainedModel,
    processor: Processor,
    session: Session | None,
    folder: Path,
) -> Made:
    """Cuts and refits a base as a run did, and saves that.

    Args:
        parts: What was read of the run's folder.
        settings: Settings of the run.
        dense: The base.
        processor: Tokenizer or processor of the base.
        session: What refits are made with; None makes none.
        folder: Empty folder to save in.

    Raises:
        ValueError: If the report says that a tensor was refitted which no refit changes.
    """
    keep, layout = parts.arms.kept_units(parts.kept), parts.report.layout
    tensors, trained = stored_tensors(parts.run.root), parts.report.recovery is not None
    dtype = stored_dtype(tensors)
    small = cut(dense, keep, layout)
    refits = _with_biases(small, dense, keep, parts, tensors, both_sides=_both_sides(settings))
    if session and refits:
        refitted = cut(dense, keep, layout)
        session.refit(refitted, keep)
        _copy(refitted, small, refits)
    finished = without_empty_layers(small)
    round_weights(finished, dtype)
    task = build_task(settings.task, processor, dense.config, type(dense).__name__)
    save_checkpoint(finished, folder, processor, dtype, task.side_files())
    made = stored_tensors(folder)
    return Made(folder, made, {*made} if trained else _stored_names(small, refits, made, dtype))


def _with_biases(
    small: PreTrainedModel,
    dense: PreTrainedModel,
    keep: KeepIndices,
    parts: Parts,
    tensors: Collection[str],
    both_sides: bool,
) -> set[str]:
    """Gives a cut model the biases that the run gave it, zeros as yet.

    Args:
        small: Cut model, which is changed.
        dense: The base.
        keep: What stays of it.
        parts: What was read of the run's folder.
        tensors: Names of the stored tensors.
        both_sides: Whether refits change what makes the columns of a site, too.

    Returns:
        Names of what was refitted, in the model's state dict.

    Raises:
        ValueError: If the report says that a tensor was refitted which no refit changes.
    """
    names, trained = {*(parts.report.not_sliced() or [])}, parts.report.recovery is not None
    plain, projections = {*small.state_dict()}, _projections(dense, small, keep)
    biases = {name: site for name, (site, _) in projections.items() if name not in plain}
    given = {
        name: site
        for name, site in biases.items()
        if (name in tensors if trained else {name, projections[name][1]} <= names)
    }
    for site in given.values():
        projection = projection_of(small, site)
        projection.write_bias(torch.zeros(len(projection.weight)))
    declare_biases(small, list(given.values()))
    zeros = {*small.state_dict()} - plain - {*given}  # that a stock config says with the biases that were given
    makers = _makers(dense, small, keep) if both_sides else set()
    if strange := sorted(names - zeros - ({*projections} - {*biases}) - {*given} - makers):
        raise ValueError(f"the report says that {some(strange)} was refitted, which no refit changes")
    return names - zeros


def _both_sides(settings: PruneConfig) -> bool:
    """Tells whether refits change what makes the columns of a site, too."""
    method = make_compensation(settings.compensation) if settings.compensation else None
    return method is not None and method.bottom_up and method.both_sides


def _projections(dense: PreTrainedModel, small: PreTrainedModel, keep: KeepIndices) -> dict[str, tuple[Site, str]]:
    """Finds all that a refit may change: weights and biases of the output projections of sites that were cut.

    Returns:
        Name in the state dict of the cut model, or that a bias would have there -> its site in that model, and the
        name of the weights.
    """
    prefix = "" if small.base_model is small else f"{small.base_model_prefix}."
    there = {site.name: site for site in architecture_of(small).sites(small, empty=True)}
    places: dict[int, list[str]] = {}
    for name, tensor in small.state_dict().items():
        places.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    found: dict[str, tuple[Site, str]] = {}
    for site, units in kept_units(dense, keep):
        if len(units) == site.units or site.name not in there:
            continue
        own = there[site.name]
        projection = projection_of(small, own)
        for part in (part for part in projection.parts if part.numel()):
            for name in places[part.untyped_storage().data_ptr()]:
                found[name] = own, name
        if projection.module is not None and may_have_bias(small, own):
            name = f"{prefix}{own.name}.bias"
            found[name] = own, f"{prefix}{own.name}.weight" if own.units else name
    return found


def _makers(dense: PreTrainedModel, small: PreTrainedModel, keep: KeepIndices) -> set[str]:
    """Names the weights and biases that make the columns of sites that were cut, in the cut model's state dict."""
    prefix = "" if small.base_model is small else f"{small.base_model_prefix}."
    paths = [
        path
        for site, units in kept_units(dense, keep)
        if len(units) < site.units
        for path in made_by(dense, site, units)
    ]
    return {f"{prefix}{path}.{name}" for path in paths for name in ("weight", "bias")}


@torch.no_grad()
def _copy(source: PreTrainedModel, model: PreTrainedModel, names: Iterable[str]) -> None:
    """Gives a model some of the weights of another one, by name."""
    theirs, ours = source.state_dict(), model.state_dict()
    for name in names:
        if name in theirs:
            ours[name].copy_(theirs[name])


@torch.no_grad()
def _stored_names(small: PreTrainedModel, names: set[str], made: Collection[str], dtype: torch.dtype) -> set[str]:
    """Says what weights are called in the files, where those have other names than modules, or layers without a unit
    are gone.

    Args:
        small: The model; the weights in question are overwritten.
        names: Names in its state dict.
        made: Names in the files of that model.
        dtype: Precision of the files.
    """
    if names <= {*made} and without_empty_layers(small) is small:
        return names
    weights = small.state_dict()
    for name in names:
        weights[name].fill_(float("nan"))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(without_empty_layers(small), Path(folder), None, dtype)
        return {name for name, tensor in read_tensors(Path(folder)) if tensor.isnan().any()}


def stored_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """Finds the precision of a checkpoint's files."""
    return next((FLOATS[tensor.dtype] for tensor in tensors.values() if tensor.dtype in FLOATS), torch.float32)
