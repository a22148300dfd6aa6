"""Counts what a model and each of its arms cost: parameters, and multiply-accumulates (MACs) of a forward pass.

Symbols: K arms; F FFN neurons; H query heads; G key-value heads; Dh head size; T tokens.
"""

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures.base import architecture_of
from hf_mabprune.architectures.sites import Site, linear_at
from hf_mabprune.arms import ArmTable


def arm_table(model: PreTrainedModel, kinds: list[str], block_size: int, tokens: int) -> ArmTable:
    """Lists every arm of a model, with its costs.

    Args:
        model: Model as it is now.
        kinds: Kinds of arms wanted.
        block_size: Neighbouring neurons that make one arm; the last block of a layer may be smaller.
        tokens: T, length of the sequence that MACs are counted for.

    Returns:
        Table of K arms, neurons before heads, layer by layer.
    """
    rows = []
    for site in sorted(architecture_of(model).sites(model), key=lambda site: (site.kind != "neuron", site.layer)):
        if site.kind not in kinds:
            continue
        step = block_size if site.kind == "neuron" else site.group
        parameters, macs = unit_cost(model, site, tokens)
        for index, start in enumerate(range(0, site.units, step)):
            stop = min(start + step, site.units)
            units = stop - start
            rows.append((site.kind, site.layer, index, start, stop, round(parameters * units), round(macs * units)))
    kind, *numbers = zip(*rows, strict=True)
    return ArmTable(np.array(kind), *(np.array(column, dtype=np.int64) for column in numbers))


def unit_cost(model: PreTrainedModel, site: Site, tokens: int) -> tuple[float, float]:
    """Counts the parameters and MACs that go with one unit; shared key and value rows count G / H each.

    Args:
        model: Model as it is now.
        site: Site of the unit.
        tokens: T, length of the sequence that MACs are counted for.
    """
    parameters = weights = 0.0
    for path in site.linears():
        linear = linear_at(model, path)
        rows = site.unit_size / (site.group if path in site.per_group else 1)
        if path == site.output:
            weights += linear.out_features * site.unit_size
        else:
            weights += linear.in_features * rows
            parameters += rows if linear.bias is not None else 0
    # A head's products of queries with keys, and of weights with values: T x T of Dh multiplications each.
    attention = 2 * tokens * tokens * site.unit_size if site.kind == "head" else 0
    return parameters + weights, weights * tokens + attention


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Counts the parameters of a model, tied ones once.

    Returns:
        `parameters` of all of it, `ffn_parameters` and `attention_parameters` of its sites.
    """
    counts = {"neuron": 0, "head": 0}
    for site in architecture_of(model).sites(model):
        for path in site.linears():
            counts[site.kind] += sum(p.numel() for p in model.base_model.get_submodule(path).parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": total, "ffn_parameters": counts["neuron"], "attention_parameters": counts["head"]}


@torch.inference_mode()
def count_macs(model: PreTrainedModel, tokens: int, one_sequence: tuple[int, ...] = (1,)) -> int:
    """Counts the multiply-accumulates of one forward pass over one sequence, by running it.

    All Linear modules count, and the attention products, over the full T x T matrix, causal or not.

    Args:
        model: Model as it is now.
        tokens: T, length of the sequence.
        one_sequence: Shape of a batch of one sequence without its tokens, as the task has it.
    """
    macs = 0

    def count(module: nn.Linear, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal macs
        positions = arguments[0].numel() // arguments[0].shape[-1]
        macs += positions * module.in_features * module.out_features

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(count) for module in linears]
    try:
        ids = torch.ones(*one_sequence, tokens, dtype=torch.long, device=model.device)
        model(input_ids=ids, attention_mask=ids)
    finally:
        for hook in hooks:
            hook.remove()
    for site in architecture_of(model).sites(model):
        if site.kind == "head":
            macs += 2 * tokens * tokens * site.units * site.unit_size
    return macs
