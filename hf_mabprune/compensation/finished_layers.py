"""Layers that will not change any more: they run once on each batch, and answer with what they gave then.

So what goes layer by layer over all batches costs one pass of the model in all, and not one up to each layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Layer, architecture_of
from hf_mabprune.architectures.patching import answer, replaced
from hf_mabprune.architectures.sites import Stack
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch


class Seen(Exception):
    """The rest of a forward pass is of no interest."""


class FinishedLayers:
    """The first layers of a model, and what the last of them give on every batch.

    Memory: hidden states of all batches.

    Args:
        model: The model.
        task: Runs the model on a batch.
        batches: The batches.
    """

    def __init__(self, model: PreTrainedModel, task: Task, batches: Sequence[Batch]) -> None:
        self.model, self.task, self.batches = model, task, batches
        self.layers = architecture_of(model).layers(model)
        self.count = 0
        self._outputs: list[dict[Stack, Any]] = []  # of the last of them in each stack, a batch each

    @property
    def share(self) -> float:
        """Of all layers."""
        return self.count / len(self.layers)

    @torch.inference_mode()
    def raise_to(self, count: int) -> Cost:
        """The first `count` layers are finished: runs those that were not yet, on every batch, and says the cost."""
        if count <= self.count:
            return Cost()
        last = {layer.stack: layer for layer in self.layers[self.count : count]}  # of each stack
        outputs: list[dict[Stack, Any]] = []
        for number, batch in enumerate(over(self.batches, "layers that are finished")):
            taken: dict[Stack, Any] = dict(self._outputs[number]) if self._outputs else {}
            with self.skipped(number), suppress(Seen), ExitStack() as hooks:
                for stack, layer in last.items():
                    ends = layer is self.layers[count - 1]
                    hook = partial(_take, taken, stack, ends)
                    hooks.callback(self._module(layer).register_forward_hook(hook).remove)
                self.task.readout(self.model, batch.to(self.model.device))
            outputs.append(taken)
        tokens = sum(batch.tokens for batch in self.batches) * (count - self.count) / len(self.layers)
        self.count, self._outputs = count, outputs
        return Cost(forward_tokens=tokens)

    @contextmanager
    def skipped(self, number: int) -> Iterator[None]:
        """They answer with what they gave on a batch, while the context is open."""
        finished = self.layers[: self.count]
        with replaced({self._module(each): partial(answer, self._outputs[number][each.stack]) for each in finished}):
            yield

    def _module(self, layer: Layer) -> nn.Module:
        return self.model.base_model.get_submodule(layer.path)


def _take(taken: dict[Stack, Any], stack: Stack, ends: bool, module: nn.Module, arguments: Any, output: Any) -> None:
    """A hook that takes its module's output, and ends the pass there if nothing after it is of interest."""
    taken[stack] = output
    if ends:
        raise Seen
