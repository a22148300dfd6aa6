"""What rivals share: what they say, how a model runs by it, what it counts for, and a budget for two stages.

Whole attention blocks may go, which `surgery.cut` does not do; so a choice is tried by masks, which give what a model
without the block would give, and its parameters are counted as if the block were gone.
Symbols: D outputs of a projection, S columns that stay; L layers; H query heads; F FFN neurons.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.projections import cut_shapes, spread
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.arms import Ints, KeepIndices
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.surgery.layers import layers_gone
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

ALPHA = 1.5  # of the rule that splits a budget between two stages: 2SSP, section 4.3
SAMPLE = 2048  # tokens that attention is tried on in the second: one sample of 2SSP, and of Putri's code


@dataclass(frozen=True)
class Chosen:
    """What a rival says.

    Attributes:
        keep: Units that stay, by name of the site; none where the block goes as a whole.
        weights: New weights of projections, [D, S] at the columns that stay, by name of the site: the method's own
            compensation. Projections that it does not name stay as they are.
        cost: Tokens that it was found with.
    """

    keep: KeepIndices
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


@contextmanager
def applied(model: PreTrainedModel, chosen: Chosen, compensated: bool = True) -> Iterator[PreTrainedModel]:
    """Has a model work as the smaller one would, while the context is open.

    Args:
        model: The dense model; its weights are put back afterwards.
        chosen: What stays.
        compensated: Whether to take the method's own weights, too.
    """
    sites = {site.name: site for site in architecture_of(model).sites(model)}
    with restored(model), masked(model, masks=keep_masks(model, chosen.keep)):
        for name, weight in (chosen.weights if compensated else {}).items():
            write_kept(model, sites[name], chosen.keep[name], weight)
        yield model


@contextmanager
def restored(model: PreTrainedModel) -> Iterator[None]:
    """Puts the weights of all projections back when the context is left."""
    projections = [projection_of(model, site) for site in architecture_of(model).sites(model)]
    before = [projection.weight.detach().clone() for projection in projections]
    try:
        yield
    finally:
        for projection, weight in zip(projections, before, strict=True):
            projection.write(weight)


def write_kept(model: PreTrainedModel, site: Site, units: Ints, weight: torch.Tensor) -> None:
    """Writes weights, [D, S], to the columns of some units."""
    projection = projection_of(model, site)
    whole = projection.weight.detach().clone()
    whole[:, torch.as_tensor(spread(units, site.unit_size), device=whole.device)] = weight.to(whole)
    projection.write(whole)


def blocks(model: PreTrainedModel) -> list[tuple[Site, Site]]:
    """Lists attention and FFN of every layer.

    Raises:
        ValueError: If a layer has others, or more.
    """
    sites = architecture_of(model).sites(model)
    heads, neurons = ([site for site in sites if site.kind == kind] for kind in ("head", "neuron"))
    pairs = list(zip(heads, neurons, strict=False))
    if len(sites) != 2 * len(pairs) or any(head.depth != neuron.depth for head, neuron in pairs):
        raise ValueError("rivals are for decoders with one attention and one FFN a layer")
    return pairs


def block_parameters(model: PreTrainedModel, site: Site) -> int:
    """Counts all parameters of the module that a site is in, norms of queries and keys among them."""
    module: nn.Module = part_at(model.base_model, site.block)
    return sum(parameter.numel() for parameter in module.parameters())


def non_embedding_parameters(model: PreTrainedModel) -> int:
    """Counts all parameters but those of the embeddings of tokens, and of the layer that makes logits."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in outside)


def removed_parameters(model: PreTrainedModel, keep: KeepIndices) -> int:
    """Counts the parameters that go: rows and columns of units, or the whole block where no unit or no layer stays.

    Of an attention that goes, queries, keys, values, outputs and their norms go; the norms before and after it stay.

    Args:
        model: The dense model.
        keep: Units that stay, by name of the site.
    """
    base, total, layers = model.base_model, 0, {f"{name}." for name in layers_gone(model, keep)[0]}
    for site in architecture_of(model).sites(model):
        units = np.empty(0, dtype=np.int64) if site.prefix in layers else keep.get(site.name)
        if units is None or len(units) == site.units:
            continue
        if not len(units):
            total += block_parameters(model, site)
            continue
        shapes = cut_shapes(base, [(site, units)])
        total += sum(part_at(base, path).numel() - math.prod(shape) for path, shape in shapes.items())
    return total


class TwoStages(NamedTuple):
    """A budget for neurons, and then for attention.

    Attributes:
        attentions, ffns: Sites of every layer.
        going: Attention blocks that go.
        width: Neurons of each layer that stay.
    """

    attentions: list[Site]
    ffns: list[Site]
    going: int
    width: int


def split(model: PreTrainedModel, fraction: float, alpha: float = ALPHA) -> TwoStages:
    """Splits a budget between neurons and attention blocks: 2SSP, equation 5.

    N = round(L s^(P_FFN / P_attention / alpha)) attention blocks go; neurons, equally in all layers, make up the rest.

    Args:
        model: The dense model.
        fraction: s, of the parameters outside embeddings, that goes.
        alpha: Balance of the two.

    Raises:
        ValueError: If blocks alone are more than the budget, or all neurons too few.
    """
    pairs = blocks(model)
    (attention, ffn), layers = (block_parameters(model, site) for site in pairs[0]), len(pairs)
    going = round(layers * fraction ** (ffn / attention / alpha))
    share = (fraction * non_embedding_parameters(model) - going * attention) / (layers * ffn)
    width = round(pairs[0][1].units * (1 - share))
    if share < 0 or width < 1:
        raise ValueError(f"{fraction:.0%} is not {going} attention blocks and some neurons, but {share:.0%} of them")
    return TwoStages([head for head, _ in pairs], [neuron for _, neuron in pairs], going, width)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, task: Task, batches: Sequence[Batch], keep: KeepIndices) -> float:
    """Measures the perplexity of a masked model, all positions alike."""
    loss = positions = 0.0
    with masked(model, masks=keep_masks(model, keep)):
        for batch in batches:
            readout = task.readout(model, batch.to(model.device))
            loss += float((readout.losses() * readout.positions()).sum())
            positions += int(readout.positions().sum())
    return math.exp(min(loss / positions, 700.0))


def beginning(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """Takes examples from the beginning until they have so many tokens; at least one."""
    taken: list[Batch] = []
    for batch in batches:
        missing = tokens - sum(part.tokens for part in taken)
        if missing <= 0:
            break
        each = batch.tokens // batch.examples
        taken.append(batch.rows(slice(max(1, -(-missing // each)))))
    return taken


def best(scores: torch.Tensor, number: int) -> Ints:
    """Lists the units with the largest scores, sorted."""
    return np.sort(scores.topk(number).indices.cpu().numpy())
