"""Sites: the places of a model where units can be cut out, and the projections that a cut touches.

A site is the input of one output projection: F columns of the FFN's, or H * Dh columns of the attention's. Masking a
column there equals removing it together with the rows of the projections that produce it.
Symbols: F FFN neurons; H query heads; G key-value heads; Dh head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class SiteSpec:
    """Says where one kind of arm lives inside a layer; module paths are relative to the layer.

    Attributes:
        output: Projection whose input columns are the units.
        per_unit: Projections with one block of output rows a unit (FFN inputs, queries).
        per_group: Projections with one block of output rows a group of units (keys, values).
        attributes: Module path -> attribute -> which size it holds: `units`, `groups` or `columns`.
        block: Largest module whose output (or the first of its outputs) is that of the projection; the projection
            itself when left out.
        feeds: Modules outside the block that do nothing but feed it.
    """

    output: str
    per_unit: tuple[str, ...]
    per_group: tuple[str, ...] = ()
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    block: str | None = None
    feeds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """Says where one site of one model is, and what sizes it has now; module paths are relative to the base model.

    Attributes:
        kind: `neuron` or `head`.
        layer: Number of the layer.
        output, per_unit, per_group, attributes: As in `SiteSpec`.
        units: F neurons, or H query heads.
        unit_size: Columns a unit has in the output projection: 1, or Dh.
        group: Units that can only go together: 1, or H / G.
        block, feeds: As in `SiteSpec`.
    """

    kind: str
    layer: int
    output: str
    per_unit: tuple[str, ...]
    per_group: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, str]] = field(hash=False)
    units: int
    unit_size: int
    group: int
    block: str
    feeds: tuple[str, ...]

    def sizes(self, units: int) -> dict[str, int]:
        """Gives the sizes that go with a number of units: `units`, `groups` and `columns`."""
        return {"units": units, "groups": units // self.group, "columns": units * self.unit_size}

    def linears(self) -> tuple[str, ...]:
        """Lists every projection that a cut of this site touches, the output projection last."""
        return (*self.per_unit, *self.per_group, self.output)


def linear_at(model: PreTrainedModel, path: str) -> nn.Linear:
    """Gives the Linear module at a path of the base model.

    Raises:
        ValueError: If another kind of module is there.
    """
    linear = model.base_model.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{path} is a {type(linear).__name__}, not an nn.Linear: its weights cannot be cut")
    return linear
