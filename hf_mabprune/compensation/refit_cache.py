"""Refits that were made once: a search that measures many sets meets the same columns at a site again and again."""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch

from hf_mabprune.effects.reserve import Reserve

Key = tuple[str, bytes]  # path of the projection, and the columns (and outputs) that stay
Values = tuple[torch.Tensor, torch.Tensor]  # weight [D, S] and bias [D]


@dataclass
class RefitCache:
    """Keeps the weights of refitted sites, for sets that agree at a site.

    Attributes:
        reserve: Memory of the run; where it is full, refits that were not asked for the longest go.
        refits: Weights and biases, the last asked for at the end.
    """

    reserve: Reserve = field(default_factory=Reserve)
    refits: OrderedDict[Key, Values] = field(default_factory=OrderedDict)

    def get(self, key: Key) -> Values | None:
        """Gives what was put there, None where it is not there or no longer."""
        if key in self.refits:
            self.refits.move_to_end(key)
        return self.refits.get(key)

    def put(self, key: Key, values: Values) -> None:
        """Keeps a refit, and makes room for it where others are kept."""
        if key in self.refits:
            return
        size = sum(tensor.nbytes for tensor in values)
        while not (fits := self.reserve.take_for(values[0], size)) and self.refits:
            self.refits.popitem(last=False)
        if fits:
            self.refits[key] = values
