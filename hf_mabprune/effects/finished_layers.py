"""Layers that will not change any more: they run once on each batch, and answer with what they gave then.

So what goes layer by layer over all batches costs one pass of the model in all, and not one up to each layer; and
where layers have to be brought in (`checkpoints.offload`), each comes in once, and not once for every batch.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Layer, architecture_of
from hf_mabprune.architectures.patching import answer, replaced
from hf_mabprune.architectures.sites import Stack
from hf_mabprune.checkpoints.offload import offload_of
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

Run = tuple[int, Batch, Callable[[], Any]]  # number of a batch, the batch on its device, and what runs it


class Seen(Exception):
    """The rest of a forward pass is of no interest."""


class FinishedLayers:
    """The first layers of a model, and what the last of them give on every batch.

    Layers that run several times in a pass are never finished.

    Memory: hidden states of all batches.

    Args:
        model: The model.
        task: Runs the model on a batch.
        batches: The batches.
    """

    def __init__(self, model: PreTrainedModel, task: Task, batches: Sequence[Batch]) -> None:
        self.model, self.task, self.batches = model, task, batches
        self.layers = architecture_of(model).layers(model)
        self._shared = architecture_of(model).shares_layers(model)
        self.count = 0
        self._outputs: dict[int, dict[Stack, Any]] = {}  # of the last of them in each stack, by number of the batch

    @property
    def share(self) -> float:
        """Of all layers."""
        return self.count / len(self.layers)

    def raise_to(self, count: int) -> float:
        """The first `count` layers are finished: runs those that were not yet, on every batch, and counts the tokens
        that passed, a part of the layers as that part."""
        if count <= self.count or self._shared:
            return 0.0
        tokens = sum(batch.tokens for batch in self.batches) * (count - self.count) / len(self.layers)
        step = 1 if offload_of(self.model) else count - self.count
        while self.count < count:
            self._raise_by(step, range(len(self.batches)))
        return tokens

    def ahead(self, numbers: Sequence[int] | None = None) -> "FinishedLayers":
        """Gives the same with all layers finished on some batches, or on all, where layers have to be brought in; as
        it is for any other model, which runs as well batch by batch."""
        if offload_of(self.model) is None or self._shared:
            return self
        further = copy.copy(self)
        while further.count < len(further.layers):
            further._raise_by(1, range(len(self.batches)) if numbers is None else numbers)
        return further

    @torch.inference_mode()
    def _raise_by(self, step: int, numbers: Sequence[int]) -> None:
        for *_, run in self.steps(step, over(numbers, "layers that are finished")):
            run()

    def steps(self, step: int, numbers: Iterator[int]) -> Iterator[Run]:
        """Finishes some layers more, while what it gives is run: on one batch after the other, each once."""
        count, outputs = self.count + step, dict[int, dict[Stack, Any]]()

        def run(number: int, inputs: Batch) -> None:
            outputs[number] = self._run(number, inputs, count)

        for number in numbers:
            inputs = self.batches[number].to(self.model.device)
            yield number, inputs, partial(run, number, inputs)
        self.count, self._outputs = count, outputs

    def _run(self, number: int, inputs: Batch, count: int) -> dict[Stack, Any]:
        """Runs the layers up to `count` that are not finished on a batch; gives the last outputs of each stack."""
        taken: dict[Stack, Any] = dict(self._outputs.get(number, {}))
        last = {layer.stack: layer for layer in self.layers[self.count : count]}  # of each stack
        with self.skipped(number), suppress(Seen), ExitStack() as hooks:
            for stack, layer in last.items():
                hook = partial(_take, taken, stack, layer is self.layers[count - 1])
                hooks.callback(self._module(layer).register_forward_hook(hook).remove)
            self.task.readout(self.model, inputs)
        return taken

    @contextmanager
    def skipped(self, number: int) -> Iterator[None]:
        """They answer with what they gave on a batch, while the context is open."""
        finished = self.layers[: self.count]
        with replaced({self._module(each): partial(answer, self._outputs[number][each.stack]) for each in finished}):
            yield

    def _module(self, layer: Layer) -> nn.Module:
        return self.model.base_model.get_submodule(layer.path)


def runs(model: PreTrainedModel, task: Task, batches: Sequence[Batch], name: str) -> Iterator[Run]:
    """Gives what runs a model on each batch: all of it, or, where layers have to be brought in, a layer at a time on
    all batches, so that each batch comes as often as there are layers. Hooks in layers see every batch once.

    Args:
        name: What is done with the batches, to be shown.
    """
    if offload_of(model) is None or len(batches) == 1 or architecture_of(model).shares_layers(model):
        for number, batch in enumerate(over(batches, name)):
            inputs = batch.to(model.device)
            yield number, inputs, partial(task.readout, model, inputs)
        return
    finished = FinishedLayers(model, task, batches)
    for _ in finished.layers:
        yield from finished.steps(1, over(range(len(batches)), name))


def _take(taken: dict[Stack, Any], stack: Stack, ends: bool, module: nn.Module, arguments: Any, output: Any) -> None:
    """A hook that takes its module's output, and ends the pass there if nothing after it is of interest."""
    taken[stack] = output
    if ends:
        raise Seen
