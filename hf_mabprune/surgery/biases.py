"""Biases of output projections that had none: whether a checkpoint can say them, and how its config does."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, projection_of
from hf_mabprune.architectures.stock import bias_fields, built_shapes
from hf_mabprune.checkpoints import modeling_pruned


def may_have_bias(model: PreTrainedModel, site: Site) -> bool:
    """Says whether a site's output projection has a bias, or can be given one that the checkpoint still says."""
    projection = projection_of(model, site)
    if projection.module is None:
        return False
    if projection.bias is not None or isinstance(model, modeling_pruned.PerLayerModel):
        return True
    return site.name in bias_fields(model)


def declare_biases(model: PreTrainedModel, given: Sequence[Site]) -> None:
    """Makes a model's config say the biases that output projections were given after they were built, in place.

    A stock config says them for all projections of a kind in all layers, so the others get zeros; the plan of a
    per-layer config names the projections themselves.

    Args:
        model: Cut model, with those biases in place.
        given: Sites whose output projections got a bias that they did not have.
    """
    if not given:
        return
    if isinstance(model.config, modeling_pruned.PerLayerConfig):
        parameters = model.config.mabprune["parameters"]
        for site in given:
            parameters[f"{site.name}.bias"] = [len(projection_of(model, site).weight)]
        return
    fields = bias_fields(model)
    for field in {fields[site.name] for site in given}:
        setattr(model.config, field, True)
    there = dict(model.base_model.named_parameters())
    for path, shape in built_shapes(type(model), model.config).items():
        module, _, name = path.rpartition(".")
        if name == "bias" and path not in there:
            weight = there[f"{module}.weight"]
            zeros = nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=weight.device), weight.requires_grad)
            model.base_model.get_submodule(module).register_parameter(name, zeros)
