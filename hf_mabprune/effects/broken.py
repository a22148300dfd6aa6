"""Why what a model says is not finite: the weight, the input, the label or the module where it begins."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import Readout

WIDE = (torch.float32, torch.float64)


@torch.inference_mode()
def cause(model: PreTrainedModel, task: Task, batches: Sequence[Batch]) -> str:
    """Says why the outputs of a model, their loss or their gradients are not finite, and what to do about it.

    Masks that are on are seen.

    Args:
        model: The model.
        task: Gives the logits that count.
        batches: Batches on which something is not finite; the first where that is the model's own doing is described.

    Returns:
        Half a sentence, to follow a colon.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"the weight {name} holds numbers that are not finite; take another checkpoint"
    for batch in batches:
        if reason := _cause_on(model, task, batch.to(model.device)):
            return reason
    overflow = "numbers on the way overflow" if model.dtype in WIDE else f"numbers on the way overflow {_name(model)}"
    return f"the outputs of the whole model are finite, {overflow}; {_remedy(model)}"


def _cause_on(model: PreTrainedModel, task: Task, batch: Batch) -> str:
    """Says what is wrong with one batch; empty where outputs and losses are finite."""
    for name, values in batch.items():
        if name != LABELS and values.is_floating_point() and not values.isfinite().all():
            return f"{name} of the data holds numbers that are not finite; look for broken examples"
    readout, first = _watched(model, lambda: task.readout(model, batch))
    if not readout.outputs.isfinite().all():
        return f"the output of {first or 'the model'} overflows {_name(model)}; {_remedy(model)}"
    if not readout.losses().isfinite().all():
        labels = f"labels of up to {float(batch[LABELS].abs().max()):.3g}" if LABELS in batch else "what it is to give"
        return f"outputs are finite, but {labels} cannot be compared with them; look for broken labels"
    return ""


def _watched(model: PreTrainedModel, run: Callable[[], Readout]) -> tuple[Readout, str]:
    """Runs a model; gives what it says, and the first module whose output is not finite, empty where all are."""
    broken: list[str] = []

    def look(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if not broken and torch.is_tensor(output) and not output.isfinite().all():
            broken.append(name)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not next(module.children(), None):
                hooks.callback(module.register_forward_hook(partial(look, name)).remove)
        readout = run()
    return readout, next(iter(broken), "")


def _name(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _remedy(model: PreTrainedModel) -> str:
    return "look for weights that are too large" if model.dtype in WIDE else "use dtype float32"
