"""Amounts of what a target leaves, in words: 200MB, 12ms."""

import re
from typing import Annotated

from pydantic import Field

BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
NUMBER = r"\d+(\.\d+)?"

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Fractions = Fraction | Annotated[list[Fraction], Field(min_length=1)]
Size = Annotated[str, Field(pattern=f"^{NUMBER} ?({'|'.join(BYTES)})$", examples=["200MB"])]
Sizes = Fraction | Size | Annotated[list[Fraction | Size], Field(min_length=1)]
Time = Annotated[str, Field(pattern=f"^{NUMBER} ?({'|'.join(MILLISECONDS)})$", examples=["12ms"])]
Times = Fraction | Time | Annotated[list[Fraction | Time], Field(min_length=1)]
Amount = float | str  # a fraction removed, or what may be left


def in_units(text: str) -> float:
    """Reads an amount with its unit.

    Args:
        text: A number and a unit, e.g. 200MB, 1.5 GiB or 12ms; M is a million, Mi is 2^20.

    Returns:
        Bytes, or milliseconds.
    """
    unit = text.lstrip("0123456789. ")
    return float(re.split("[^0-9.]", text)[0]) * (BYTES | MILLISECONDS)[unit]


def in_words(value: float, unit: str) -> str:
    """Writes an amount of bytes (`B`), of milliseconds (`ms`) or of what has no unit, with four digits or more."""
    if unit != "B":
        return f"{value:,.4g} {unit}" if unit else f"{value:,.0f}"
    name = next(name for name in ("GB", "MB", "KB", "B") if value >= BYTES[name] or name == "B")
    return f"{value / BYTES[name]:.4g} {name}"
