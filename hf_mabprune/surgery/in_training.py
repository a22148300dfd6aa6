"""Cuts a model while it is trained: the object stays the same and gets smaller, and its optimizer with it.

What an optimizer holds of a parameter entry by entry, as Adam does its moments, is cut by the surgery that cuts the
parameter, so training goes on as if what went had been masked all along.
"""

from collections.abc import Collection, Mapping

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.arms import KeepIndices
from hf_mabprune.surgery.biases import declare_biases, may_have_bias
from hf_mabprune.surgery.cut import cut_layers
from hf_mabprune.surgery.layers import Stay, layers_gone

Values = Mapping[torch.Tensor, torch.Tensor]  # parameter -> values of its shape


def take_over(model: PreTrainedModel, small: PreTrainedModel, stays: Collection[str] = ()) -> None:
    """Makes a model into a smaller one, in place: class, config, modules and parameters.

    Args:
        model: Model that others hold on to, e.g. a Trainer; its parameters are other objects afterwards.
        small: Model that takes its place, from `cut`; not to be used any more.
        stays: Attributes of `model` itself that it keeps, where it has them.
    """
    own = {name: vars(model)[name] for name in stays if name in vars(model)}
    model.__class__ = small.__class__
    vars(model).clear()
    vars(model).update(vars(small) | own)


def new_biases(model: PreTrainedModel, small: PreTrainedModel, keep: KeepIndices) -> list[str]:
    """Names the sites of a cut model, as it has them, whose output projections got a bias by a refit."""
    there = {*_counterparts(model, small, keep).values()}
    sites = architecture_of(small).sites(small, empty=True)
    biases = {site.name: part_at(small.base_model, f"{site.name}.bias") for site in sites}
    return [name for name, bias in biases.items() if bias is not None and bias not in there]


def give_biases(small: PreTrainedModel, names: Collection[str]) -> None:
    """Gives output projections of a cut model biases of zero, which its config says from then on.

    Raises:
        ValueError: If there is no such site, or its projection cannot have one.
    """
    sites = {site.name: site for site in architecture_of(small).sites(small, empty=True)}
    for name in names:
        if name not in sites or not may_have_bias(small, sites[name]):
            raise ValueError(f"the model has no site {name} that can have a bias")
    for name in names:
        projection = projection_of(small, sites[name])
        projection.write_bias(projection.weight.new_zeros(len(projection.weight)))
    declare_biases(small, [sites[name] for name in names])


def check_states(optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimizer that holds what cannot be cut.

    Raises:
        ValueError: If a state of a parameter is neither a number nor of the parameter's shape.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer keeps {name} of shape {list(value.shape)} for a parameter of shape "
                    f"{list(parameter.shape)}, which cannot be cut along with it: take one whose states have the "
                    "shapes of the parameters, e.g. AdamW or SGD"
                )


def cut_optimizer(
    optimizer: torch.optim.Optimizer, model: PreTrainedModel, small: PreTrainedModel, keep: KeepIndices
) -> None:
    """Lets an optimizer go on with the smaller model, in place; groups, learning rates and counts of steps stay.

    A parameter that the model did not have, a bias that a refit gave it, joins the last group, which in a Trainer is
    that without weight decay, at its place in the order of the model, and begins without states.

    Args:
        optimizer: Optimizer of `model`, or one that wraps it.
        model: Model before the cut.
        small: The same after it.
        keep: What was kept.

    Raises:
        ValueError: As `check_states`.
    """
    check_states(optimizer)
    after = _counterparts(model, small, keep)
    entries: dict[str, dict[torch.Tensor, torch.Tensor]] = {}  # what is held entry by entry, by its name
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.ndim and value.shape == parameter.shape:
                entries.setdefault(name, {})[parameter] = value
    smaller = {name: _cut_values(model, small, keep, values) for name, values in entries.items()}
    state = {}
    for parameter, values in optimizer.state.items():
        if (new := after.get(parameter, parameter)) is not None:
            state[new] = {name: smaller.get(name, {}).get(new, value) for name, value in values.items()}
    optimizer.state.clear()
    optimizer.state.update(state)
    for group in optimizer.param_groups:
        members = [after.get(parameter, parameter) for parameter in group["params"]]
        group["params"] = [parameter for parameter in members if parameter is not None]
    _join(optimizer.param_groups[-1]["params"], small, {*after.values()})


def _counterparts(
    model: PreTrainedModel, small: PreTrainedModel, keep: KeepIndices
) -> dict[torch.Tensor, torch.Tensor | None]:
    """Maps the parameters of a model to those of the cut one; None where a layer is gone as a whole."""
    stay, own = Stay(model, layers_gone(model, keep)[0]), dict(small.named_parameters())
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    found: dict[torch.Tensor, torch.Tensor | None] = {}
    for name, parameter in model.named_parameters():
        inside = name.startswith(base)
        now = stay.renamed(name.removeprefix(base)) if inside else name
        found[parameter] = None if now is None else own[f"{base}{now}" if inside else now]
    return found


def _cut_values(
    model: PreTrainedModel, small: PreTrainedModel, keep: KeepIndices, values: Values
) -> dict[torch.Tensor, torch.Tensor]:
    """Cuts values of the shapes of a model's parameters as the parameters are cut: parameter of the smaller model ->
    values, of those that get smaller."""
    stay, weights = Stay(model, layers_gone(model, keep)[0]), {parameter: parameter.data for parameter in values}
    cut: dict[torch.Tensor, torch.Tensor] = {}
    try:
        for parameter, value in values.items():
            parameter.data = value
        for layer in cut_layers(model, keep):
            for path, smaller in layer.items():
                if (now := stay.renamed(path)) is not None and part_at(model.base_model, path) in values:
                    cut[part_at(small.base_model, now)] = smaller.detach()
    finally:
        for parameter, weight in weights.items():
            parameter.data = weight
    return cut


def _join(members: list[torch.Tensor], small: PreTrainedModel, there: Collection[torch.Tensor | None]) -> None:
    """Puts the parameters that are new in a model among those that an optimizer trains, in place."""
    order: dict[torch.Tensor, int] = {parameter: place for place, parameter in enumerate(small.parameters())}
    for parameter, place in order.items():
        if parameter not in there and parameter.requires_grad:
            later = (at for at, other in enumerate(members) if order.get(other, -1) > place)
            members.insert(next(later, len(members)), parameter)


def wrap_again(wrapped: DistributedDataParallel) -> None:
    """Lets a wrapper that averages gradients over processes see that its model has other parameters, in place.

    It is what happens to one that is unpickled: all but its settings is made anew.
    """
    state = wrapped.__getstate__()
    state["_module_parameters"] = list(wrapped.module.parameters())
    wrapped.__setstate__(state)
