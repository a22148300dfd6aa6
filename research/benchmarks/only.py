"""Cells that are asked for on the command line."""

from collections.abc import Sequence
from typing import TypeVar

from hf_mabprune.registry import nearest

Each = TypeVar("Each")


def matching(cells: Sequence[Each], only: Sequence[str], fields: Sequence[str]) -> list[Each]:
    """Gives the cells that are asked for.

    Args:
        cells: All cells.
        only: Filters `name=value` or `name=value,value` of a cell's fields, e.g. `task=sst2`; all must hold. A value
            with a comma of its own stands alone.
        fields: Names of the fields that can be asked for.

    Raises:
        ValueError: For a field or a value that no cell has.
    """
    found = list(cells)
    for wanted in only:
        name, _, values = wanted.partition("=")
        if name not in fields or not values:
            raise ValueError(f"--only takes name=value with a name of {', '.join(fields)}, got '{wanted}'")
        known = dict.fromkeys(str(getattr(cell, name)) for cell in cells)
        asked = [values] if values in known else values.split(",")
        for value in asked:
            if value not in known:
                raise ValueError(f"--only: no {name} '{value}'.{nearest(value, known)} Known: {', '.join(known)}")
        found = [cell for cell in found if str(getattr(cell, name)) in asked]
    return found
