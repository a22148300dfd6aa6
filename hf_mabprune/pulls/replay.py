"""Replayed pulls: the numbers of the reference at a fraction of its price.

The pass in the current context is made once a batch and its layer outputs are kept. A pull of an arm in layer l then
starts at layer l: the layers before it are replaced by stubs that return what the context pass left, and so is the
attention of layer l for an FFN arm. What runs is the model's own code on the same numbers, so nothing is approximated.
Symbols: L layers.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.masking import keep_masks, masked
from hf_mabprune.pulls.base import Ints, Pulls, observation
from hf_mabprune.rewards import Observation
from hf_mabprune.tasks.readout import Readout


@dataclass(frozen=True)
class Recording:
    """One context pass over one batch: what each block returned, and what came out at the end."""

    outputs: dict[nn.Module, Any]
    observation: Observation
    size: int  # bytes


class ReplayPulls(Pulls):
    """One forward pass a pull, from the masked layer on; one full pass a batch and context.

    Takes the arguments of `Pulls`. Recordings are kept between calls as long as they fit into half of `cache_bytes`;
    beyond that they are made again, one batch at a time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        architecture = architecture_of(self.model)
        self._sites: dict[tuple[str, int], Site] = {
            (site.kind, site.layer): site for site in architecture.sites(self.model)
        }
        self._layers = list(architecture.layer_list(self.model))
        self._attentions = [layer.get_submodule(architecture.attention_block) for layer in self._layers]
        self._recordings: dict[int, Recording] = {}
        self._recording_bytes = self._cache_bytes // 2
        self._cache_bytes -= self._recording_bytes

    def set_context(self, kept: Any) -> None:
        super().set_context(kept)
        self._recordings.clear()

    def _measure(self, batch: int, arms: Ints, original: Readout) -> Iterator[tuple[Observation, Observation, int]]:
        with masked(self.model, **keep_masks(self.model, self.arms.kept_units(self.kept))):
            recording = self._record(batch, original)
            for arm in arms:
                layers = len(self._layers) - int(self.arms.layer[arm])
                tokens = round(self._tokens(batch) * layers / len(self._layers))
                yield recording.observation, self._replay(batch, int(arm), recording, original), tokens

    def _record(self, batch: int, original: Readout) -> Recording:
        """The context pass of a batch."""
        if batch in self._recordings:
            return self._recordings[batch]
        outputs: dict[nn.Module, Any] = {}
        with ExitStack() as hooks:
            for block in [*self._layers, *self._attentions]:
                hooks.callback(block.register_forward_hook(lambda m, _, output: outputs.update({m: output})).remove)
            readout = self.task.readout(self.model, self.batches[batch])
        self.cost.forward_tokens += self._tokens(batch)
        recording = Recording(outputs, observation(original, readout, self.needs), sum(map(_bytes, outputs.values())))
        if recording.size + sum(kept.size for kept in self._recordings.values()) <= self._recording_bytes:
            self._recordings[batch] = recording
        return recording

    def _replay(self, batch: int, arm: int, recording: Recording, original: Readout) -> Observation:
        """The context pass again, with one arm masked, from its layer on."""
        kind, layer = str(self.arms.kind[arm]), int(self.arms.layer[arm])
        skipped = [*self._layers[:layer], *([self._attentions[layer]] if kind == "neuron" else [])]
        with _stubs({block: recording.outputs[block] for block in skipped}), self._arm_masked(arm, kind, layer):
            readout = self.task.readout(self.model, self.batches[batch])
        return observation(original, readout, self.needs)

    @contextmanager
    def _arm_masked(self, arm: int, kind: str, layer: int) -> Iterator[None]:
        site = self._sites[kind, layer]
        start, stop = (int(bound) * site.unit_size for bound in (self.arms.start[arm], self.arms.stop[arm]))

        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            columns = arguments[0].clone()
            columns[..., start:stop] = 0
            return (columns, *arguments[1:])

        handle = self.model.base_model.get_submodule(site.output).register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _stubs(outputs: dict[nn.Module, Any]) -> Iterator[None]:
    """Blocks return the given outputs instead of running, while the context is open."""
    own = {block: vars(block).get("forward") for block in outputs}
    try:
        for block, output in outputs.items():
            block.forward = lambda *_, result=output, **__: result
        yield
    finally:
        for block, forward in own.items():
            del block.forward
            if forward is not None:
                block.forward = forward


def _bytes(output: Any) -> int:
    """Bytes of the tensors that a block returned."""
    parts = output if isinstance(output, tuple) else (output,)
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))
