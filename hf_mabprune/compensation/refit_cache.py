"""Refits that were made once: a search that measures many sets meets the same columns at a site again and again."""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch

CACHE_BYTES = 2**30

Key = tuple[str, bytes]  # path of the projection, and the columns that stay
Values = tuple[torch.Tensor, torch.Tensor]  # weight [D, S] and bias [D], float64


@dataclass
class RefitCache:
    """Keeps the weights of refitted sites, for sets that agree at a site.

    Attributes:
        limit: Bytes of them that are kept; those that were not asked for the longest go first.
        refits: Weights and biases, the last asked for at the end.
        size: Bytes of `refits`.
    """

    limit: int = CACHE_BYTES
    refits: OrderedDict[Key, Values] = field(default_factory=OrderedDict)
    size: int = 0

    def get(self, key: Key) -> Values | None:
        """Gives what was put there, None where it is not there or no longer."""
        if key in self.refits:
            self.refits.move_to_end(key)
        return self.refits.get(key)

    def put(self, key: Key, values: Values) -> None:
        """Keeps a refit, and makes room for it."""
        if key not in self.refits:
            self.size += _bytes(values)
        self.refits[key] = values
        while self.size > self.limit:
            self.size -= _bytes(self.refits.popitem(last=False)[1])


def _bytes(values: Values) -> int:
    return sum(tensor.nbytes for tensor in values)
