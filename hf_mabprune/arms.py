"""Lists what can be removed from a model, one row an arm, with what each costs; and what stays, by layer.

Symbols: K arms; L layers; F FFN neurons and H query heads in a layer; D hidden; Dh head size; T tokens.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

KINDS = ("neuron", "head")
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ArmTable:
    """Holds all arms of a model, as parallel arrays of length K, sorted by kind, layer and index.

    An arm covers the units `start <= u < stop` of its site: FFN neurons for a neuron arm, query heads for a head arm
    (a key-value group, where query heads share keys and values).

    Attributes:
        kind: [K], "neuron" or "head".
        layer: [K], number of the layer.
        index: [K], number of the arm within its layer and kind.
        start, stop: [K], first unit covered, and the one after the last.
        parameters: [K], parameters that go with the arm.
        macs: [K], multiply-accumulates of one forward pass over one sequence that go with the arm.
    """

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
        """Counts the neurons or query heads that each arm covers, [K]."""
        return self.stop - self.start

    def groups(self) -> list[tuple[str, int, NDArray[np.int64]]]:
        """Lists (kind, layer, numbers of the arms) for every site, in order."""
        sites = [(kind, layer) for kind in KINDS for layer in np.unique(self.layer[self.kind == kind])]
        return [
            (kind, int(layer), np.flatnonzero((self.kind == kind) & (self.layer == layer))) for kind, layer in sites
        ]

    def of_kind(self, kind: str) -> NDArray[np.int64]:
        """Lists the numbers of the arms of one kind."""
        return np.flatnonzero(self.kind == kind)

    def kept_units(self, kept: Bools) -> "KeepIndices":
        """Turns a mask over arms, [K], 1 = keep, into the unit indices that stay in each layer."""
        keep: dict[str, dict[int, NDArray[np.int64]]] = {kind: {} for kind in KINDS}
        for kind, layer, rows in self.groups():
            stays = rows[kept[rows]]
            units = [np.arange(self.start[arm], self.stop[arm]) for arm in stays]
            keep[kind][layer] = np.concatenate(units) if units else np.empty(0, dtype=np.int64)
        return KeepIndices(neurons=keep["neuron"], heads=keep["head"])

    def to_frame(self) -> pd.DataFrame:
        """Makes a data frame with one row an arm and one column an attribute."""
        return pd.DataFrame({name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class KeepIndices:
    """Says which units stay. A layer that is missing keeps everything.

    Attributes:
        neurons: layer -> sorted FFN neuron indices.
        heads: layer -> sorted query head indices.
    """

    neurons: dict[int, NDArray[np.int64]]
    heads: dict[int, NDArray[np.int64]]

    def of(self, kind: str) -> dict[int, NDArray[np.int64]]:
        """Gives layer -> unit indices for one kind."""
        return {"neuron": self.neurons, "head": self.heads}[kind]

    def sizes(self, kind: str) -> dict[int, int]:
        """Gives layer -> number of kept units for one kind."""
        return {layer: len(indices) for layer, indices in self.of(kind).items()}
