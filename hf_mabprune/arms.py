"""Lists what can be removed from a model, one row an arm, with what each costs; and what stays, by site.

Symbols: K arms; F FFN neurons, H query heads and E experts of a site; D hidden; Dh head size; T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

LAYER = "layer"
WITHIN = ("neuron", "head", "expert")  # kinds of units inside a layer
KINDS = (*WITHIN, LAYER)
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
# Name of a site -> its units that stay, sorted: FFN neurons, query heads or experts; of a layer, itself.
# Sites not named stay whole.
KeepIndices = Mapping[str, Ints]


@dataclass(frozen=True)
class ArmTable:
    """Holds all arms of a model, as parallel arrays of length K, sorted by kind, then in the order in which they run.

    An arm covers the units `start <= u < stop` of its site: FFN neurons for a neuron arm, query heads for a head arm
    (a key-value group, where query heads share keys and values), one expert for an expert arm, a layer for its own.

    Attributes:
        site: [K], name of the site: the path of its projection, or of the layer, in the base model.
        kind: [K], "neuron", "head", "expert" or "layer".
        layer: [K], number of the layer in its stack.
        index: [K], number of the arm within its site.
        start, stop: [K], first unit covered, and the one after the last.
        parameters: [K], parameters that go with the arm.
        macs: [K], multiply-accumulates of one forward pass over one sequence that go with the arm.
    """

    site: NDArray[np.str_]
    kind: NDArray[np.str_]
    layer: NDArray[np.int64]
    index: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    parameters: NDArray[np.int64]
    macs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def units(self) -> NDArray[np.int64]:
        """Counts the neurons, query heads, experts or layers that each arm covers, [K]."""
        return self.stop - self.start

    def groups(self) -> list[tuple[str, Ints]]:
        """Lists the name of every site and the numbers of its arms, in order."""
        starts = np.flatnonzero(np.append(True, self.site[1:] != self.site[:-1]))
        return [(str(self.site[rows[0]]), rows) for rows in np.split(np.arange(len(self)), starts[1:])]

    def kinds(self) -> list[str]:
        """Lists the kinds that there are arms of, in order."""
        return [kind for kind in KINDS if (self.kind == kind).any()]

    def of_kind(self, kind: str) -> Ints:
        """Lists the numbers of the arms of one kind."""
        return np.flatnonzero(self.kind == kind)

    def kept_units(self, kept: Bools) -> dict[str, Ints]:
        """Turns a mask over arms, [K], 1 = keep, into the unit indices that stay at each site."""
        keep: dict[str, Ints] = {}
        for site, rows in self.groups():
            units = [np.arange(self.start[arm], self.stop[arm]) for arm in rows[kept[rows]]]
            keep[site] = np.concatenate(units) if units else np.empty(0, dtype=np.int64)
        return keep

    def to_frame(self) -> pd.DataFrame:
        """Makes a data frame with one row an arm and one column an attribute."""
        return pd.DataFrame({name: getattr(self, name) for name in self.__dataclass_fields__})
