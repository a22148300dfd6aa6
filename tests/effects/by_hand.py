"""What flows through a model, taken by hooks of one's own and worked out by hand; no code of effects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch


def flowing(model: PreTrainedModel, task: Task, batch: Batch, path: str) -> list[Any]:
    """What a module is given in one pass."""
    seen: list[Any] = []
    handle = model.base_model.get_submodule(path).register_forward_pre_hook(lambda _, given: seen.extend(given))
    with torch.no_grad():
        task.readout(model, batch)
    handle.remove()
    return seen


def sent(
    model: PreTrainedModel, task: Task, batch: Batch, layer: int, expert: int, among: Sequence[int] = range(4)
) -> np.ndarray:
    """[N, F], what one expert of a mixtral makes of each position, times what its router says of it.

    Args:
        among: Experts that the router knows; each position goes to two of them.
    """
    block = f"layers.{layer}.mlp"
    given = flowing(model, task, batch, block)[0].flatten(0, 1).double()
    weight = model.base_model.get_submodule(f"{block}.gate").weight.double()
    known = torch.as_tensor(among)
    two = (given @ weight[known].T).softmax(-1).topk(2, -1)
    share = torch.where(known[two.indices] == expert, two.values, 0).sum(-1) / two.values.sum(-1)
    rows = model.base_model.get_submodule(f"{block}.experts").gate_up_proj[expert].double()
    gate, up = (given @ rows.T).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up * share[:, None]).detach().numpy()
