"""What inputs do to the units of a network: one number for each, by forward hooks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.sparsity.weights import find_weights

Forward = Callable[[Any], Any]
Masks = Callable[[Any], torch.Tensor | None]


def unit_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Gives the modules whose outputs are units: of a model of transformers, what makes its FFN neurons (of a gated
    FFN, its gate); of another network all that sparsity counts.

    Raises:
        ValueError: If the family of the model is not known, or it has no such neurons.
    """
    counted = {each.name: each.module for each in find_weights(network)[0]}
    model = next((module for module in network.modules() if isinstance(module, PreTrainedModel)), None)
    if model is None:
        return counted
    sites = [site for site in architecture_of(model).sites(model) if site.kind == "neuron"]
    made = {id(part_at(model.base_model, site.inside + site.spec.rows[0].path)) for site in sites}
    neurons = {name: module for name, module in counted.items() if id(module) in made}
    if not neurons:
        raise ValueError(f"a {model.config.model_type} has no FFN whose neurons a linear layer makes")
    return neurons


@torch.inference_mode()
def activations(
    network: nn.Module,
    batches: Iterable[Any],
    forward: Forward,
    mask_of: Masks = lambda batch: None,
) -> dict[str, torch.Tensor]:
    """Records the units of a network on all inputs.

    A unit's number is its output before norm and activation function: the mean over the places of an image, over the
    tokens of a text, where that has any. The score of units is the same before and after a norm for each unit.

    Args:
        network: Network in evaluation mode.
        batches: Inputs, in order.
        forward: Runs the network on a batch.
        mask_of: Gives the tokens of a batch that count, [B, T]; None where all do.

    Returns:
        By module, [P, U].
    """
    modules = unit_modules(network)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    for batch in batches:
        with _recorded(modules) as found:
            forward(batch)
        for name, output in found.items():
            seen[name].append(_a_number_each(output, modules[name], mask_of(batch)))
    return {name: torch.cat(parts) for name, parts in seen.items()}


@contextmanager
def _recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Keeps what modules give, while open."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            found[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _a_number_each(output: torch.Tensor, module: nn.Module, mask: torch.Tensor | None) -> torch.Tensor:
    """Averages over places: [B, U, *] of a convolution, [B, *, U] of others, to [B, U]."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return output.flatten(2).mean(2)
    places = output.flatten(1, -2) if output.ndim > 2 else output.unsqueeze(1)
    if mask is None or mask.shape != places.shape[:2]:
        return places.mean(1)
    weights = mask.to(places.dtype).unsqueeze(-1)
    return (places * weights).sum(1) / weights.sum(1)


def side_by_side(by_module: dict[str, torch.Tensor]) -> torch.Tensor:
    """Puts the units of all modules into one tensor, [P, U]."""
    return torch.cat(list(by_module.values()), 1)


def unit_names(by_module: dict[str, torch.Tensor]) -> Sequence[str]:
    """Names the units of `side_by_side`: the module, a colon and a number."""
    return [f"{name}:{unit}" for name, found in by_module.items() for unit in range(found.shape[1])]
