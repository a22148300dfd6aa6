"""Taps: what flows into output projections, seen or changed, whatever kind of module holds them.

A tap gets h [B, T, C] and gives what the projection is to see in its place. Where a model flattens examples and
positions, they are taken apart again. An expert's h is zero where the router does not send a position, and carries the
router's weight elsewhere, so that the experts' output is sum_e W_e h_e.
Symbols: B sequences; T positions; C columns; N = B * T; E experts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.patching import answers, replaced
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import IDS, Batch

Tap = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def tapped(model: PreTrainedModel, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Passes what flows into projections through functions, while the context is open.

    Args:
        model: A supported model; its weights are not touched.
        taps: Function by name of the site; sites of neurons or heads.
    """
    base, examples = model.base_model, Examples()
    with ExitStack() as stack:
        for site in architecture_of(model).sites(model) if taps else ():
            if site.name not in taps:
                continue
            stack.enter_context(examples.counted_in(base.get_submodule(site.prefix.removesuffix("."))))
            if site.expert is None:
                hook = partial(_through, taps[site.name], examples)
                stack.callback(base.get_submodule(site.name).register_forward_pre_hook(hook).remove)
                continue
            module = part_at(base, site.inside.removesuffix("."))
            if not isinstance(vars(module).get("forward"), _ExpertLoop):
                stack.enter_context(replaced({module: _ExpertLoop(module, examples)}))
            own = module.forward.taps.setdefault(site.expert, [])
            own.append(taps[site.name])
            stack.callback(own.remove, taps[site.name])
        yield


def positions_a_token(model: PreTrainedModel, task: Task, batch: Batch) -> int:
    """Counts the positions that layers see for each of `Batch.tokens`: one for text, the patches of an image."""
    if any(name in batch for name in IDS):
        return 1
    found = [1]

    def see(hidden: torch.Tensor) -> torch.Tensor:
        found.append(hidden.shape[1])
        return hidden

    sites = architecture_of(model).sites(model)
    with torch.inference_mode(), tapped(model, {site.name: see for site in sites if site.kind != "expert"}):
        task.readout(model, batch.rows(slice(1)).to(model.device))
    return max(found)


class Examples:
    """How many sequences the layer under way was given, which tells what a flattened tensor [N, ...] holds."""

    def __init__(self) -> None:
        self.number = 1
        self._layers: set[nn.Module] = set()

    @contextmanager
    def counted_in(self, layer: nn.Module) -> Iterator[None]:
        """Counts what a layer is given, while the context is open; a layer is watched once."""
        if layer in self._layers:
            yield
            return
        self._layers.add(layer)
        handle = layer.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._layers.discard(layer)

    def _count(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.number = len(next(value for value in (*arguments, *named.values()) if torch.is_tensor(value)))

    def apart(self, flat: torch.Tensor) -> torch.Tensor:
        """Takes [N, ...] apart into [B, T, ...]; what is not flat is left alone."""
        return flat if flat.dim() > 2 else flat.unflatten(0, (self.number, -1))


def _through(
    tap: Tap, examples: Examples, module: nn.Module, arguments: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """A hook that passes the input of a projection through a tap, unless its output is known whatever comes in."""
    hidden = arguments[0]
    if answers(module):
        return arguments
    return (tap(examples.apart(hidden)).reshape(hidden.shape), *arguments[1:])


class _ExpertLoop:
    """Runs experts one after the other, as transformers' own loop does, with taps on what flows out of them.

    Attributes:
        taps: Number of an expert -> its taps, those of outer contexts first.
    """

    def __init__(self, module: Any, examples: Examples) -> None:
        self.module, self.examples = module, examples
        self.taps: dict[int, list[Tap]] = {}

    def __call__(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Takes hidden states [N, D], and [N, k] the experts that each position is sent to, and what they count."""
        output = torch.zeros_like(hidden)
        for expert in range(self.module.num_experts):
            sent, place = torch.where(index == expert)
            weight = weights[sent, place, None].to(hidden.dtype)  # of routers in float32
            up, down = self._weights(expert)
            inner = self.module._apply_gate(linear(hidden[sent], *up)) * weight
            if taps := self.taps.get(expert):
                everywhere = inner.new_zeros(len(hidden), inner.shape[1]).index_copy(0, sent, inner)
                everywhere = self.examples.apart(everywhere)
                for tap in taps:
                    everywhere = tap(everywhere)
                inner = everywhere.flatten(0, 1)[sent]
            product = linear(inner, down[0])
            output = output.index_add(0, sent, product if down[1] is None else product + weight * down[1])
        return output

    def _weights(self, expert: int) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Gives weight [outputs, inputs] and bias of both projections of an expert."""
        found = []
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(self.module, name)[expert]
            bias = getattr(self.module, f"{name}_bias")[expert] if self.module.has_bias else None
            found.append((weight.T if self.module.is_transposed else weight, bias))
        return found
