"""Putri (2026, arXiv 2605.18331; after its public code): FFN neurons by SparseGPT's saliency, refitted layer by layer,
then key-value groups by perplexity.

Symbols: x [C] inputs of an FFN's projection, y = W x [D] its outputs; S columns that stay; G key-value heads.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, projection_of
from hf_mabprune.architectures.sites import GROUPS
from hf_mabprune.arms import Ints
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.taps import tapped
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from research.benchmarks.rivals.base import ALPHA, SAMPLE, Chosen, beginning, best, perplexity, restored, split

DAMPING = (0.0, 0.01, 0.1, 1.0)  # of the mean of the diagonal: the first that can be inverted
Call = tuple[tuple[Any, ...], dict[str, Any]]  # of a layer: what comes after the hidden states


def putri(
    model: PreTrainedModel,
    task: Task,
    batches: Sequence[Batch],
    fraction: float,
    *,
    alpha: float = ALPHA,
    sample: int = SAMPLE,
) -> Chosen:
    """Chooses and refits as Putri does, with the defaults of its code.

    Neurons, layer by layer from below, inputs being those that the layers below give once they are cut and refitted:
    neuron j is worth sum_i E[y_i^2] W_ij^2 / U_jj^2 with U' U = E[x x']^-1, U upper triangular; the most valuable
    stay, as many in every layer, and W' = E[y x_S'] E[x_S x_S']^-1. Attention: every key-value group that is left is
    tried by perplexity, and as many go at once as a layer has; so often as 2SSP has blocks go, whose split of the
    budget it is. Of a model with one key-value head, whole attention blocks go.

    Arguments are those of `two_ssp`.
    """
    attentions, ffns, going, width = split(model, fraction, alpha)
    keep: dict[str, Ints] = {}
    with restored(model):
        hidden, calls = _layer_inputs(model, task, batches, ffns)
        for number, ffn in enumerate(over(ffns, "layers")):
            layer = model.base_model.get_submodule(ffn.prefix.removesuffix("."))
            seen = _seen_in(model, layer, ffn, hidden, calls[number], batches)
            keep[ffn.name] = _cut_and_refit(model, ffn, seen, width)
            hidden = [_run(layer, state, call) for state, call in zip(hidden, calls[number], strict=True)]
        trials = beginning(batches, sample)
        tokens = 3 * sum(batch.tokens for batch in batches)
        for _ in range(going):
            tokens += _drop_groups(model, task, trials, attentions, keep)
        weights = {ffn.name: projection_of(model, ffn).weight[:, keep[ffn.name]].detach().clone() for ffn in ffns}
    return Chosen(keep, weights, Cost(forward_tokens=tokens))


@torch.inference_mode()
def _layer_inputs(
    model: PreTrainedModel, task: Task, batches: Sequence[Batch], sites: Sequence[Site]
) -> tuple[list[torch.Tensor], list[list[Call]]]:
    """Records the hidden states that the first layer is given, [B, T, D] a batch, and what else every layer is."""
    layers = [model.base_model.get_submodule(site.prefix.removesuffix(".")) for site in sites]
    hidden: list[torch.Tensor] = []
    calls: list[list[Call]] = [[] for _ in layers]

    def record(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        number = layers.index(module)
        if number == 0:
            hidden.append(arguments[0])
        calls[number].append((arguments[1:], named))

    handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        for batch in batches:
            model.base_model(**task.inputs(batch.to(model.device)), **task.forward_options)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, calls


@torch.inference_mode()
def _run(layer: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Runs a layer on other hidden states."""
    outputs = layer(hidden, *call[0], **call[1])
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _seen_in(
    model: PreTrainedModel,
    layer: nn.Module,
    site: Site,
    hidden: Sequence[torch.Tensor],
    calls: Sequence[Call],
    batches: Sequence[Batch],
) -> torch.Tensor:
    """Gives E[x x'] [C, C] float64 of a site while its layer runs on hidden states."""
    total: Any = 0
    count = 0

    def see(batch: Batch, inner: torch.Tensor) -> torch.Tensor:
        nonlocal total, count
        rows = inner[batch.counted(site.stack.flag, inner).to(inner.device)].float()
        total, count = total + (rows.T @ rows).double(), count + len(rows)
        return inner

    for state, call, batch in zip(hidden, calls, batches, strict=True):
        with tapped(model, {site.name: partial(see, batch)}):
            _run(layer, state, call)
    return torch.as_tensor(total / max(count, 1))


@torch.no_grad()
def _cut_and_refit(model: PreTrainedModel, site: Site, second: torch.Tensor, width: int) -> Ints:
    """Chooses the neurons that stay, and writes W' at their columns and zeros elsewhere."""
    projection = projection_of(model, site)
    weight = projection.weight.detach().double()
    inverse = torch.cholesky_inverse(_factor(second))
    diagonal = torch.linalg.cholesky(inverse, upper=True).diagonal()
    outputs = ((weight @ second) * weight).sum(1)  # E[y_i^2]
    units = best(outputs @ weight.square() / diagonal.square(), width)
    stay = torch.as_tensor(units, device=weight.device)
    refitted = torch.cholesky_solve((second @ weight.T)[stay], _factor(second[stay][:, stay])).T
    projection.write(torch.zeros_like(weight).index_copy(1, stay, refitted).to(projection.weight.dtype))
    return units


def _factor(second: torch.Tensor) -> torch.Tensor:
    """Gives the lower Cholesky factor, with as little damping as it takes."""
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    for damping in DAMPING:
        factor, failed = torch.linalg.cholesky_ex(second + damping * second.diagonal().mean() * eye)
        if not failed:
            return factor
    raise ValueError("activations are not finite")


def _drop_groups(
    model: PreTrainedModel, task: Task, trials: Sequence[Batch], sites: Sequence[Site], keep: dict[str, Ints]
) -> int:
    """Takes the key-value groups whose removal costs least out of `keep`, as many as a layer has; gives the tokens."""
    candidates = []
    for site in sites:
        groups = np.split(np.arange(site.units), site.sizes(site.units)[GROUPS])
        units = keep.get(site.name, np.arange(site.units))
        candidates += [(site, np.setdiff1d(units, group), group) for group in groups if np.isin(group, units).all()]
    found = [perplexity(model, task, trials, {**keep, site.name: rest}) for site, rest, _ in candidates]
    for place in np.argsort(found, kind="stable")[: sites[0].sizes(sites[0].units)[GROUPS]]:
        site, _, group = candidates[place]
        keep[site.name] = np.setdiff1d(keep.get(site.name, np.arange(site.units)), group)
    return len(candidates) * sum(batch.tokens for batch in trials)
