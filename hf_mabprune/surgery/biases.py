"""Biases of output projections that had none: whether a checkpoint can say them, and how its config does."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, linear_at
from hf_mabprune.checkpoints import modeling_pruned


def may_have_bias(model: PreTrainedModel, site: Site) -> bool:
    """Says whether a site's output projection has a bias, or can be given one that the checkpoint still says."""
    if linear_at(model, site.output).bias is not None or isinstance(model, modeling_pruned.PerLayerModel):
        return True
    return site.kind in architecture_of(model).bias_fields


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
        plan = model.config.mabprune
        plan["biases"] = sorted({*plan.get("biases", ()), *(site.output for site in given)})
        return
    architecture = architecture_of(model)
    for kind in {site.kind for site in given}:
        setattr(model.config, architecture.bias_fields[kind], True)
        for path in [path for site in architecture.sites(model) if site.kind == kind for path in site.linears()]:
            linear = linear_at(model, path)
            if linear.bias is None:
                zeros = linear.weight.new_zeros(linear.out_features)
                linear.bias = nn.Parameter(zeros, requires_grad=linear.weight.requires_grad)
