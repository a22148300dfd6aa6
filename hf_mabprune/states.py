"""What a saved state may hold: one description an entry, checked before any of it is believed.

A class that can be saved describes its entries once, name -> `Entry`, and `read_state` reads a state by them. Whatever
does not fit is a ValueError of one line, and nothing is taken in.
Symbols: K arms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

LARGEST = float(np.finfo(np.float64).max)  # what is beyond is infinite
WHOLE = 2**53  # counts beyond are not exact as floats
ONE = {bool: "true or false", int: "a whole number", float: "a number"}
DTYPES = {bool: np.dtype(np.bool_), int: np.dtype(np.int64), float: np.dtype(np.float64)}


class Entry(Protocol):
    """Describes one entry of a state."""

    def read(self, value: Any, sizes: Mapping[str, int]) -> Any:
        """Gives a copy of what was saved.

        Args:
            value: As it was read from a file.
            sizes: Symbol of a shape -> size, e.g. K.

        Raises:
            ValueError: If it is not what is described; the message goes on from "must be".
        """


@dataclass(frozen=True)
class Values:
    """Numbers of one kind within limits: one of them, or an array.

    Attributes:
        kind: bool, int or float.
        shape: Sizes, or symbols of them; a symbol without a size may be anything. Of one number: ().
        low, high: Limits, both of them allowed; what is infinite is within them only where a limit is.
        nan: Whether NaN may stand for what is not known.
    """

    kind: type
    shape: tuple[int | str, ...] = ("K",)
    low: float = -LARGEST
    high: float = LARGEST
    nan: bool = False

    def read(self, value: Any, sizes: Mapping[str, int]) -> Any:
        """See `Entry.read`."""
        if not self.shape:
            return self._read_one(value)
        if not isinstance(value, np.ndarray) or value.dtype != DTYPES[self.kind]:
            raise ValueError(f"an array of {DTYPES[self.kind]}, got {_kind_of(value)}")
        shape = [sizes.get(size, None) if isinstance(size, str) else size for size in self.shape]
        if len(shape) != value.ndim or any(a not in (None, b) for a, b in zip(shape, value.shape, strict=True)):
            raise ValueError(f"{[size or 'n' for size in shape]}, got {list(value.shape)}")
        if self.kind is not bool:
            fits = (value >= self.low) & (value <= self.high) | (np.isnan(value) & self.nan)
            if not fits.all():
                raise ValueError(f"in [{self.low:g}, {self.high:g}], got {value[~fits].flat[0]}")
        return value.copy()

    def _read_one(self, value: Any) -> Any:
        whole = self.kind is float and type(value) is int and abs(value) <= WHOLE
        if type(value) is not self.kind and not whole:
            raise ValueError(f"{ONE[self.kind]}, got {value!r:.60}")
        if not (self.low <= value <= self.high or (self.nan and value != value)):
            raise ValueError(f"in [{self.low:g}, {self.high:g}], got {value!r:.60}")
        return self.kind(value)


@dataclass(frozen=True)
class Record:
    """Makes an object of entries with names.

    Attributes:
        make: Class or function that takes the entries by name.
        entries: Name -> description.
    """

    make: Callable[..., Any]
    entries: Mapping[str, Entry]

    def read(self, value: Any, sizes: Mapping[str, int]) -> Any:
        """See `Entry.read`."""
        return self.make(**read_state(self.make.__name__, value, self.entries, sizes))


@dataclass(frozen=True)
class Items:
    """Lists any number of entries of one description."""

    item: Entry

    def read(self, value: Any, sizes: Mapping[str, int]) -> list[Any]:
        """See `Entry.read`."""
        if not isinstance(value, list):
            raise ValueError(f"a list, got {_kind_of(value)}")
        return [self.item.read(each, sizes) for each in value]


@dataclass(frozen=True)
class Text:
    """Holds words."""

    def read(self, value: Any, sizes: Mapping[str, int]) -> str:
        """See `Entry.read`."""
        if not isinstance(value, str):
            raise ValueError(f"a string, got {_kind_of(value)}")
        return value


@dataclass(frozen=True)
class Part:
    """Holds a state of its own, which whoever it belongs to checks."""

    def read(self, value: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
        """See `Entry.read`."""
        if not isinstance(value, dict):
            raise ValueError(f"a state of its own, got {_kind_of(value)}")
        return value


@dataclass(frozen=True)
class Generator:
    """Holds where a random generator of numpy's usual kind, PCG64, is."""

    def read(self, value: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
        """See `Entry.read`."""
        kind = value.get("bit_generator") if isinstance(value, dict) else _kind_of(value)
        if kind != "PCG64":
            raise ValueError(f"the state of a random generator PCG64, got {kind!r:.60}")
        words = Record(dict, {name: Values(int, (), 0, 2**128 - 1) for name in ("state", "inc")})
        buffer = {"has_uint32": Values(int, (), 0, 1), "uinteger": Values(int, (), 0, 2**32 - 1)}
        entries: dict[str, Entry] = {"state": words, **buffer}
        read = read_state(kind, {name: value[name] for name in value.keys() - {"bit_generator"}}, entries, sizes)
        if read["state"]["inc"] % 2 == 0:
            raise ValueError("the state of a random generator PCG64, whose increment is odd")
        return {"bit_generator": kind, **read}


def read_state(what: str, state: Any, entries: Mapping[str, Entry], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Reads a state by the description of its entries.

    Args:
        what: Words for whose state it is.
        state: As it was read from a file.
        entries: Name -> description; all of them must be there, and nothing else.
        sizes: Symbol of a shape -> size, e.g. K.

    Returns:
        Name -> a copy of what was saved.

    Raises:
        ValueError: If anything is missing, unknown or not as described.
    """
    if not isinstance(state, dict) or state.keys() != entries.keys():
        got = [f"{name!r:.30}" for name in state] if isinstance(state, dict) else _kind_of(state)
        raise ValueError(f"a state of {what} has {[*entries]}, got {got!s:.200}")
    read = {}
    for name, entry in entries.items():
        try:
            read[name] = entry.read(state[name], sizes)
        except ValueError as error:
            raise ValueError(f"{name} must be {error}") from None
    return read


def _kind_of(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
