"""Rehearses, before the search, what else would be found out after it: that a cut model is saved and read back.

The place of the output is rehearsed with its lock (`runtime.files.rehearse`).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints.load import HALF_TOLERANCE, TOLERANCE, reload_difference
from hf_mabprune.checkpoints.offload import all_away, on_device
from hf_mabprune.checkpoints.save import round_weights, save_checkpoint
from hf_mabprune.checkpoints.weight_files import largest
from hf_mabprune.effects.broken import cause
from hf_mabprune.errors import outside
from hf_mabprune.progress import stage
from hf_mabprune.runtime.files import passing_folder
from hf_mabprune.runtime.processes import on_main
from hf_mabprune.selection.plan import Plan
from hf_mabprune.session import Session
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.layers import Stay, shorter_config

SMALL = 2_000_000  # parameters; a smaller model is rehearsed whole
LAYERS = 2  # of a larger one, in each stack: the first is unlike the others where it makes position biases for all
EXAMPLES = 2


@stage("rehearsal")
def rehearse_checkpoint(session: Session) -> None:
    """Cuts the first layers as the smallest size asks, in each layout that it may take, saves and reads them back.

    Arms are taken in order, no matter what they are worth. Nothing is left behind.

    Args:
        session: Model, data and arms. Every process of a launch calls this, the main process writes.

    Raises:
        ValueError: If a weight is out of the range of the precision it is saved in, or not finite; or if what is read
            back is not what was saved.
    """
    check_precision(session.dense, session.save_dtype)
    on_main(session.accelerator, partial(_rehearse, session))


def check_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuses weights that cannot be saved in a precision.

    Args:
        model: Model before pruning.
        dtype: Precision of saved weights.

    Raises:
        ValueError: Naming the tensor and its largest value.
    """
    limit = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        value = largest(parameter)
        if not value < float("inf"):
            raise ValueError(f"the weights of the model are not finite: {name} holds {value}; load another copy of it")
        if value > limit:
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} holds {value:.4g}, and {kind}, which the checkpoint is saved in, ends at {limit:.4g}: set "
                "model.save_dtype: float32"
            )


def _rehearse(session: Session) -> None:
    """Goes through the layouts that the smallest size may take."""
    plans = session.plans(session.settings.prune.sizes()[-1])
    model = first_layers(session.dense)
    inputs = _inputs(session, model)
    for plan in filter(None, (plans.search, plans.uniform)):
        difference = _reload(session, model, plan, inputs)
        if not difference <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):
            raise ValueError(
                f"a {type(model).__name__} that is cut ({plan.layout}), saved and read back differs from itself by "
                f"{difference:.2g} on logits: load it again with from_pretrained, in float32"
            )


@torch.inference_mode()
def _inputs(session: Session, model: PreTrainedModel) -> dict[str, Any]:
    """Gives a few examples on which a model's outputs are finite; those of a broken batch are not.

    Raises:
        ValueError: If there are none, saying why.
    """
    batches = session.batches["calibration"]
    for batch in batches:
        inputs = dict(session.task.few_inputs(model, batch.rows(slice(EXAMPLES))))
        if model(**inputs)[0].isfinite().all():
            return inputs
    raise ValueError(f"no calibration batch has finite outputs: {cause(model, session.task, batches)}")


def _reload(session: Session, model: PreTrainedModel, plan: Plan, inputs: dict[str, Any]) -> float:
    """Cuts a model, saves it, reads it back, and gives the largest difference of logits."""
    kept, _ = plan.choose(np.zeros(len(session.arms)), np.ones(len(session.arms), dtype=bool))
    with (
        outside(f"a {type(model).__name__} cannot be cut ({plan.layout}), saved and read back"),
        passing_folder(session.settings.output.dir) as folder,
    ):
        small = cut(model, _of(model, session.arms.kept_units(kept)), plan.layout)
        round_weights(small, session.save_dtype)
        save_checkpoint(small, folder, session.processor, session.save_dtype)
        return reload_difference(small, folder, session.task.auto_class, inputs)


def _of(model: PreTrainedModel, keep: KeepIndices) -> KeepIndices:
    """Picks the sites that a model has."""
    architecture = architecture_of(model)
    names = {site.name for site in (*architecture.sites(model), *architecture.whole_layers(model))}
    return {name: units for name, units in keep.items() if name in names}


def first_layers(dense: PreTrainedModel) -> PreTrainedModel:
    """Gives a model of the first layers of another one, which share its weights; all of it where it is small.

    Args:
        dense: Model in evaluation mode; it is not changed.
    """
    if dense.num_parameters() < SMALL:
        return dense
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            others = {each.path for each in architecture_of(dense).layers(dense) if each.number >= LAYERS}
            model: PreTrainedModel = type(dense)(shorter_config(dense.config, Stay(dense, others)))
        all_away(dense)
        weights = dict(_tensors(dense))
        for name, tensor in list(_tensors(model)):
            _put(model, name, weights[name], tensor)
        model.tie_weights()
    except Exception:  # of a class that is not made from a config alone
        return dense
    if dense.can_generate():
        model.generation_config = dense.generation_config
    return on_device(model, dense.device).eval()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Goes through parameters and buffers, those that are not saved and all names of tied ones included."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _put(model: nn.Module, name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Puts a tensor of another model into the place of one of the same shape."""
    if tensor.shape != like.shape:
        raise ValueError(f"{name} has another shape")
    path, _, last = name.rpartition(".")
    shared = nn.Parameter(tensor.detach(), tensor.requires_grad) if isinstance(like, nn.Parameter) else tensor
    setattr(model.get_submodule(path), last, shared)
