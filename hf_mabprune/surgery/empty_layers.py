"""Takes out the layers of a cut model that have no unit left: what they still add is a constant, which moves.

A layer whose norms come first, or stand between a block and its sum, gives x + c for x without its units: c comes from
the biases of its output projections, and the last block of the layer before adds it from then on. Where a norm stands
behind the sum, as in BERT, the layer gives norm(x + c), and stays.
Symbols: D hidden.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.checkpoints.modeling_pruned import PerLayerModel
from hf_mabprune.surgery.biases import declare_biases
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.layers import Stay


def without_empty_layers(model: PreTrainedModel, passing: bool = False) -> PreTrainedModel:
    """Copies a cut model without the layers that have no unit left; gives itself where there is none that can go.

    Args:
        model: Per-layer model; it is as before afterwards.
        passing: As that of `cut`.
    """
    found = _empty_layers(model) if isinstance(model, PerLayerModel) else {}
    if not found:
        return model
    small = cut(model, dict.fromkeys(found, np.empty(0, dtype=np.int64)), "per_layer", passing)
    sites = {site.name: site for site in architecture_of(small).sites(small, empty=True)}
    stay, by_layer = Stay(model, list(found)), _sites_by_layer(model)
    given = []
    for name, taker in found.items():
        constant = _constant(model, by_layer[name])
        if constant is None:
            continue
        site = sites[str(stay.renamed(taker.name))]
        projection = projection_of(small, site)
        if projection.bias is None:
            given.append(site)
        projection.write_bias(constant if projection.bias is None else projection.bias.detach() + constant)
    declare_biases(small, given)
    return small


def can_go_empty(model: PreTrainedModel) -> list[str]:
    """Names the layers that go where both of their blocks do."""
    layers, by_layer = architecture_of(model).whole_layers(model), _sites_by_layer(model)
    return [site.name for site in layers if _is_identity(model, by_layer[site.name])]


def _empty_layers(model: PreTrainedModel) -> dict[str, Site]:
    """Finds the layers without a unit that can go: name -> site of a layer before that takes over what they add."""
    found: dict[str, Site] = {}
    before: dict[str, Site] = {}  # path of a list of layers -> last site of the last layer that stays
    may_go = set(can_go_empty(model))
    for name, sites in _sites_by_layer(model).items():
        path = name.rpartition(".")[0]
        if name in may_go and not any(site.units for site in sites):
            taker = before.get(path)
            if taker and (_takes_more(model, taker) or not _biases(model, sites)):
                found[name] = taker
                continue
        if sites:
            before[path] = sites[-1]
    return found


def _sites_by_layer(model: PreTrainedModel) -> dict[str, list[Site]]:
    """Maps each layer to all of its sites, both in the order in which they run."""
    architecture = architecture_of(model)
    found: dict[str, list[Site]] = {layer.path: [] for layer in architecture.layers(model)}
    for site in architecture.sites(model, empty=True):
        found[site.prefix.removesuffix(".")].append(site)
    return found


def _is_identity(model: PreTrainedModel, sites: Sequence[Site]) -> bool:
    """Says whether a layer adds a constant and does nothing else where no unit is left."""
    if {site.kind for site in sites} != {"neuron", "head"} or not all(site.spec.empties for site in sites):
        return False
    clear = [bool(site.spec.norm) or _is_norm(model, site) for site in sites]
    parallel = [not site.spec.stream for site in sites[:-1]]  # what is added at once is declared for the last alone
    return clear[-1] and all(each or other for each, other in zip(clear, parallel, strict=False))


def _is_norm(model: PreTrainedModel, site: Site) -> bool:
    """Says whether a norm is what reads the stream that a site is added to."""
    reader = part_at(model.base_model, site.prefix + site.spec.stream) if site.spec.stream else None
    return "Norm" in type(reader).__name__


def _takes_more(model: PreTrainedModel, site: Site) -> bool:
    """Says whether what is added to the bias of a site's projection comes out as it is behind the layer."""
    return not site.spec.norm and _is_norm(model, site) and projection_of(model, site).module is not None


def _biases(model: PreTrainedModel, sites: Sequence[Site]) -> list[tuple[Site, torch.Tensor]]:
    """Lists the biases of the output projections of some sites."""
    found = ((site, projection_of(model, site).bias) for site in sites)
    return [(site, bias.detach()) for site, bias in found if bias is not None]


@torch.no_grad()
def _constant(model: PreTrainedModel, sites: Sequence[Site]) -> torch.Tensor | None:
    """[D], what a layer without a unit adds; None where it has no bias."""
    parts = []
    for site, bias in _biases(model, sites):
        norm = part_at(model.base_model, site.prefix + site.spec.norm) if site.spec.norm else nn.Identity()
        parts.append(norm(bias))
    return torch.stack(parts).sum(0) if parts else None
