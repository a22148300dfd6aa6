"""What the dense model says on the batches of a run: asked once, and read from the record by every stage after that.

Pulls, refits and the report all compare with the dense model on the same batches. With its outputs on record no stage
after the search has to run it again, or to hold it beside the smaller one.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from hf_mabprune.checkpoints.offload import offload_of
from hf_mabprune.effects.finished_layers import FinishedLayers
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout

COPIES = 8  # of a batch's logits, in wider precision some of them, while divergences are formed
BLOCK = 2**25  # bytes of logits at a time, where a head makes them
WHOLE = -1  # in the place of the number of a part: the batch as it is

Key = Hashable  # (split, number of the batch, number of its part)


@dataclass(frozen=True)
class Recorded:
    """What the dense model says on one batch.

    Attributes:
        distribution: [B, P, C], of the outputs, in the precision that divergences are formed in.
    """

    readout: Readout
    distribution: torch.Tensor


@dataclass
class DenseOutputs:
    """Keeps readouts of the dense model by the batch that they are of.

    What does not fit into memory goes to temporary files, and what fits nowhere is computed again when it is asked
    for. Distributions, which divergences are measured from, are kept in memory alone.

    Args:
        reserve: Memory of the run.
    """

    reserve: Reserve = field(default_factory=Reserve)
    _readouts: dict[Key, Readout] = field(default_factory=dict, repr=False)
    _distributions: dict[Key, torch.Tensor] = field(default_factory=dict, repr=False)

    def readout(self, key: Key, make: Callable[[], Readout]) -> Readout:
        """Gives what is on record under a key, else what `make` gives, which is recorded then.

        Nothing that is recorded holds on to the pass that made it.
        """
        if key in self._readouts:
            known = self._readouts[key]
            return replace(known, outputs=known.outputs.to(known.targets.device))
        with torch.inference_mode():
            made = make()
        if self.reserve.take_for(made, made.outputs.nbytes):
            self._readouts[key] = made
        elif (stored := self.reserve.stored(made.outputs)) is not None:
            self._readouts[key] = replace(made, outputs=stored)
        return made

    def fill(self, keys: Sequence[Key], model: PreTrainedModel, task: Task, batches: Sequence[Batch]) -> None:
        """Records what a model says on batches at once where it has to bring layers in; nothing for any other model.

        Args:
            keys: Key of each batch.
        """
        if offload_of(model) is None or all(key in self._readouts for key in keys):
            return
        finished = FinishedLayers(model, task, batches).ahead()
        for number, (key, batch) in enumerate(zip(keys, batches, strict=True)):
            with finished.skipped(number):
                self.readout(key, partial(task.readout, model, batch.to(model.device)))

    def recorded(self, key: Key, make: Callable[[], Readout]) -> Recorded:
        """Gives the same with the distributions of the outputs, which are kept beside it."""
        readout = self.readout(key, make)
        if key in self._distributions:
            return Recorded(readout, self._distributions[key])
        with torch.inference_mode():
            distribution = readout.distribution()
        if self.reserve.take_for(distribution, distribution.nbytes):
            self._distributions[key] = distribution
        return Recorded(readout, distribution)


def memory(sizes: Sizes, readout: Readout, tokens: int) -> tuple[int, int]:
    """Estimates bytes of outputs: of a few copies while divergences are formed, and of all that are kept, were there
    no limit.

    Args:
        readout: What a model says on a batch.
        tokens: Positions of that batch, padding included.
    """
    logits, distributions = readout.outputs.nbytes / tokens, readout.distribution().nbytes / tokens
    forming = logits * max(sizes.batch_tokens, sizes.forward_tokens) if distributions else BLOCK
    return round(COPIES * forming), round((logits + distributions) * sizes.tokens)
