"""Counts what a model and each of its arms cost: parameters, and multiply-accumulates (MACs) of a forward pass.

Parameters come from what surgery would cut, MACs from a pass that is watched: nothing is assumed of a family.
Symbols: K arms; F FFN neurons; H query heads; G key-value heads; Dh head size; T tokens.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_mabprune.architectures.base import architecture_of
from hf_mabprune.architectures.projections import cut_shapes, cuts
from hf_mabprune.architectures.sites import Site, part_at
from hf_mabprune.arms import KINDS, LAYER, ArmTable, Ints

PAIRS = ("bmm", "baddbmm")  # operations that multiply activations with activations


@dataclass(frozen=True)
class Work:
    """MACs of one forward pass.

    Attributes:
        total: Of the whole model.
        weights: Module of the base model -> MACs with its weights, and those of the modules in it.
        pairs: Module of the base model -> MACs of activations with one another: over the full T x T matrix of an
            attention, causal or not.
    """

    total: int
    weights: Mapping[str, int]
    pairs: Mapping[str, int]


@torch.no_grad()  # in inference mode the counter finds no place for its hooks on parameters that modules are handed
def measure_work(model: PreTrainedModel, example: Mapping[str, torch.Tensor]) -> Work:
    """Counts the MACs of one forward pass by running it, with attention and experts that the counter can see into.

    Args:
        model: Model as it is now.
        example: Inputs of one example.
    """
    counter = FlopCounterMode(display=False)
    with _eager(model), counter:
        model(**{name: tensor.to(model.device) for name, tensor in example.items()})
    root = type(model).__name__
    prefix = f"{root}." if model.base_model is model else f"{root}.{model.base_model_prefix}."
    weights, pairs = {}, {}
    for module, counts in counter.get_flop_counts().items():
        path = module.removeprefix(prefix)
        pairs[path] = sum(count for operation, count in counts.items() if _name(operation) in PAIRS) // 2
        weights[path] = sum(counts.values()) // 2 - pairs[path]
    return Work(counter.get_total_flops() // 2, weights, pairs)


def _name(operation: object) -> str:
    """Names an operation: `bmm` for `aten.bmm`."""
    return str(operation).rpartition(".")[2]


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Has attention and experts run as plain products while the context is open; fused kernels hide theirs."""
    attention, experts = model.config._attn_implementation, getattr(model.config, "_experts_implementation", None)
    try:
        model.set_attn_implementation("eager")
        if experts is not None:
            model.set_experts_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(attention)
        if experts is not None:
            model.set_experts_implementation(experts)


def count_macs(model: PreTrainedModel, example: Mapping[str, torch.Tensor]) -> int:
    """Counts the multiply-accumulates of one forward pass over one example; arguments as those of `measure_work`."""
    return measure_work(model, example).total


def arm_table(
    model: PreTrainedModel, kinds: list[str], block_size: int, example: Mapping[str, torch.Tensor]
) -> ArmTable:
    """Lists every arm of a model, with its costs.

    Args:
        model: Model as it is now.
        kinds: Kinds of arms wanted.
        block_size: Neighbouring neurons that make one arm; the last block of a site may be smaller.
        example: Inputs of one example, which MACs are counted for.

    Returns:
        Table of K arms, neurons before heads before experts before layers, layer by layer.

    Raises:
        ValueError: If the model has no arms of these kinds.
    """
    work = measure_work(model, example)
    rows = []
    architecture = architecture_of(model)
    sites = [*architecture.sites(model), *architecture.whole_layers(model)]
    for site in sorted(sites, key=lambda site: KINDS.index(site.kind)):
        if site.kind not in kinds:
            continue
        step = block_size if site.kind == "neuron" else site.group
        parameters, macs = unit_cost(model, site, work)
        for index, start in enumerate(range(0, site.units, step)):
            stop = min(start + step, site.units)
            costs = round(parameters * (stop - start)), round(macs * (stop - start))
            rows.append((site.name, site.kind, site.layer, index, start, stop, *costs))
    if not rows:
        reasons = architecture.kept_whole(model)
        why = "".join(f": {reasons[kind]}" for kind in kinds if kind in reasons)
        raise ValueError(f"the model has no {' or '.join(f'{kind}s' for kind in kinds)} that can be cut{why}")
    name, kind, *numbers = zip(*rows, strict=True)
    return ArmTable(np.array(name), np.array(kind), *(np.array(column, dtype=np.int64) for column in numbers))


def unit_cost(model: PreTrainedModel, site: Site, work: Work) -> tuple[float, float]:
    """Counts the parameters and MACs that go with one unit: its share of what goes with its group.

    Key and value rows count G / H each, and none where all heads have one key-value head in common, which stays.
    Tokens of an expert that goes are sent to others: all that its removal saves is the product of the router. With a
    layer goes all that is in it.

    Args:
        model: Model as it is now.
        site: Site of the unit.
        work: Of the model, from `measure_work`.
    """
    base, parameters, macs = model.base_model, 0.0, 0.0
    if site.kind == LAYER:
        weights = base.get_submodule(site.name).parameters()
        return sum(weight.numel() for weight in weights), work.weights.get(site.name, 0) + work.pairs.get(site.name, 0)
    whole, fewer = (cuts(base, site, np.arange(units)) for units in (site.units, site.units - site.group))
    for cut, rest in zip(whole, fewer, strict=True):
        if cut.source is not None:
            continue  # a copy that the model does not have yet
        parameter = part_at(base, cut.path)
        if not isinstance(parameter, nn.Parameter):
            continue  # a buffer
        gone = len(cut.index) - len(rest.index)
        share = gone / parameter.shape[cut.dim] / site.group  # of the parameter, a unit
        parameters += share * parameter.numel() / (1 if cut.expert is None else len(parameter))
        module, _, name = cut.path.rpartition(".")
        if name == "weight":
            macs += share * work.weights.get(module, 0)
    if site.expert is not None:
        experts = site.inside.removesuffix(".")
        macs = work.weights.get(experts, 0) / len(part_at(base, f"{experts}.down_proj")) / site.units
    if site.kind == "head":
        attention = (site.prefix + site.spec.rows[0].path).rpartition(".")[0]
        macs += work.pairs.get(attention, 0) / site.units
    return parameters, macs


def parameters_after(
    model: PreTrainedModel, kept: Sequence[tuple[Site, Ints]], counts: Mapping[str, int]
) -> dict[str, int]:
    """Counts the parameters that are left once sites are cut, without cutting.

    Args:
        model: Model as it is now.
        kept: Sites where something changes, and the units that stay in each.
        counts: Of the model, from `count_parameters`.
    """
    base, left = model.base_model, dict(counts)
    kinds = {cut.path: site.kind for site, units in kept for cut in cuts(base, site, units)}
    for path, shape in cut_shapes(base, list(kept)).items():
        old = part_at(base, path)
        if not (old is None or isinstance(old, nn.Parameter)):
            continue  # a buffer
        change = math.prod(shape) - (0 if old is None else old.numel())
        left["parameters"] += change
        left["attention_parameters" if kinds[path] == "head" else "ffn_parameters"] += change
    return left


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Counts the parameters of a model, tied ones once.

    Returns:
        `parameters` of all of it, `ffn_parameters` (experts and routers among them) and `attention_parameters` of the
        modules that its sites are in.
    """
    base = model.base_model
    counted: dict[str, dict[int, int]] = {"ffn": {}, "attention": {}}
    for site in architecture_of(model).sites(model, empty=True):
        part = counted["attention" if site.kind == "head" else "ffn"]
        for path in {cut.path.rpartition(".")[0] for cut in cuts(base, site, np.arange(site.units))}:
            module = part_at(base, path)
            if isinstance(module, nn.Module):
                part |= {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": total} | {f"{name}_parameters": sum(part.values()) for name, part in counted.items()}
