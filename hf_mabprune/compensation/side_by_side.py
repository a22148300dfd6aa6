"""The dense model and a pruned one, layer by layer on the same batches: what a site gets in one, and should give.

Symbols: N positions seen; C columns of a projection of the dense model, S that stay; D outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.effects.activations import watch_inputs
from hf_mabprune.effects.finished_layers import FinishedLayers, Seen
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.routes import routes
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

Pair = tuple[torch.Tensor, torch.Tensor]  # x [N, S] and y [N, D]


class SideBySide:
    """Goes up two models together, a layer at a time over all batches, and holds the hidden states between layers.

    Memory: what a layer gives on all batches, of both models.

    Args:
        dense, small: The dense model and the pruned one.
        task: Runs a model on a batch.
        batches: The batches.
        renamed: Says how a module of the dense model is called in the pruned one.

    Attributes:
        cost: Of all passes so far.
        moved: Whether the states that `rows` gave last are not those of the dense model, bit by bit.
    """

    def __init__(
        self,
        dense: PreTrainedModel,
        small: PreTrainedModel,
        task: Task,
        batches: Sequence[Batch],
        renamed: Callable[[str], str],
    ) -> None:
        self.dense, self.small, self.task, self.batches, self.renamed = dense, small, task, batches, renamed
        self.cost, self.moved = Cost(), False
        self._sites = [architecture_of(model).sites(model, empty=True) for model in (dense, small)]
        self._finished = [FinishedLayers(model, task, batches) for model in (dense, small)]

    def pairs(self, site: Site) -> Iterator[Pair]:
        """Gives the pruned model's inputs x [N, S] of a site, and the y [N, D] that make up for all below.

        With h the dense model's inputs, and s0 and s what its output is added to in the dense model and in the pruned
        one, y = W h + b + s0 - s: so x is fitted to what is missing, errors of the layers below included.
        Where nothing is known of s, y = W h + b. Where nothing of the site is left, x has no columns. Behind a router
        b is what the biases of the dense model's experts add, less what those of the pruned one do.
        """
        weight, bias = (values.float() for values in projection_of(self.dense, site).float64())
        # What is inside a module that may be empty is not run there.
        around = [path for path in site.spec.empties if f"{site.spec.stream}.".startswith(f"{path}.")]
        stream = [site.prefix + path for path in [*around, site.spec.stream][:1] if path and site.expert is None]
        for (hidden, streams, added), (x, others, left) in self._seen(site, stream, ()):
            y = nn.functional.linear(hidden, weight, bias) + (added - left)
            for before, now in zip(streams, others, strict=True):
                y = y + before - now
            yield x if x.numel() else y[:, :0], y

    def rows(self, site: Site, paths: Sequence[str], rows: Sequence[torch.Tensor]) -> Iterator[Pair]:
        """Gives the pruned model's inputs x of the modules that make a site's columns, and what the dense ones gave.

        Args:
            paths: Modules that have their inputs in common, [M].
            rows: Outputs that stay, of each of the dense modules.
        """
        self.moved = False
        for (_, (states, *outputs), _), (_, (x,), _) in self._seen(site, paths[:1], paths):
            self.moved = self.moved or not torch.equal(states, x)
            yield x, torch.cat([output[:, which] for output, which in zip(outputs, rows, strict=True)], 1)

    def _seen(self, site: Site, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[tuple[Any, Any]]:
        """Runs a layer of both models on every batch: inputs of the site and of modules, and outputs of dense ones."""
        names = site.name, self.renamed(site.name)
        own, left = (
            Looked.at(next(s for s in sites if s.name == name), sites)
            for name, sites in zip(names, self._sites, strict=True)
        )
        self._raise_to(own.depth, left.depth)
        (dense, small), there = self._finished, [self.renamed(path) for path in inputs]
        for number, batch in enumerate(over(self.batches, "inputs and outputs")):
            with dense.skipped(number):
                before = _look(self.dense, self.task, batch, own, inputs, outputs)
            with small.skipped(number):
                yield before, _look(self.small, self.task, batch, left, there, ())

    def _raise_to(self, *counts: int) -> None:
        """Finishes the first layers of both, so many of each, which will not change any more."""
        tokens = 2 * sum(batch.tokens for batch in self.batches) / len(self._finished[0].layers)
        tokens += sum(finished.raise_to(count) for finished, count in zip(self._finished, counts, strict=True))
        self.cost += Cost(forward_tokens=tokens)


@dataclass(frozen=True)
class Looked:
    """A site that is looked at.

    Attributes:
        parts: Its members.
        routers: Its router, where it has one.
        depth: Layers before its own.
    """

    parts: Sequence[Site]
    routers: Sequence[Site]
    depth: int

    @classmethod
    def at(cls, site: Site, sites: Sequence[Site]) -> Self:
        """Finds what belongs to a site among all of a model."""
        return cls(members(site, sites), [site] if site.kind == "expert" else [], site.depth)


def _look(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    site: Looked,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | float]:
    """Gives the inputs of a site [N, columns], those of some modules before it with outputs of others, and what biases
    behind a router add; float32.

    A site without columns is not run: then the pass ends at the last of the modules before it.
    """
    base, taken = model.base_model, dict[tuple[str, str], torch.Tensor]()
    columns, empty = torch.empty(0), not any(part.columns for part in site.parts)
    added: torch.Tensor | float = 0.0

    def take(path: str, _: nn.Module, given: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        taken["in", path] = given[0] if given else named["hidden_states"]
        if empty and path == inputs[-1]:
            raise Seen

    with ExitStack() as hooks, torch.inference_mode():
        for path in inputs:
            hook = base.get_submodule(path).register_forward_pre_hook(partial(take, path), with_kwargs=True)
            hooks.callback(hook.remove)
        for path in outputs:
            hook = base.get_submodule(path).register_forward_hook(
                lambda _, __, given, path=path: taken.update({("out", path): given})
            )
            hooks.callback(hook.remove)
        if not empty:
            columns, added = input_of(model, task, batch, site)
        elif inputs:
            with suppress(Seen):
                task.readout(model, batch.to(model.device))
    found = [taken["in", path] for path in inputs] + [taken["out", path] for path in outputs]
    on_device = batch.to(model.device)
    apart = on_device.examples * on_device.sequences, -1  # of what is flat: a table, or examples and positions as one
    found = [states.unflatten(0, apart) if states.ndim == 2 else states for states in found]
    flag = site.parts[0].stack.flag
    return columns, [states[on_device.counted(flag, states)].float() for states in found], added


def input_of(
    model: PreTrainedModel, task: Task, batch: Batch, site: Looked
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Gives what flows into a site's projection, padding left out.

    Returns:
        [N, columns] float32; behind a router those of all experts, side by side. And [N, D], what their biases add to
        what the projections make of it; 0 where there are none.
    """
    found: list[torch.Tensor] = []
    added: list[torch.Tensor | float] = []

    def see(_: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        found.append(hidden[counted].float())
        if len(found) == len(site.parts):
            biases = [route.from_biases() for route in said.values()]
            added.extend(each[counted.flatten()] if torch.is_tensor(each) else each for each in biases)
            raise Seen

    with routes(model, site.routers) as said, suppress(Seen):
        watch_inputs(model, task, [batch], site.parts, see)
    return torch.cat(found, 1), added[0] if added else 0.0
