"""Values as files from outside may hold them, and states with one thing changed."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-3, max_value=3),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from([10**400, -1, 0, 1, 2**63, "", "null", "../x", "\ud800", "a\nb"]),
)


def json_values(keys: st.SearchStrategy[str], scalars: st.SearchStrategy[Any] = SCALARS) -> st.SearchStrategy[Any]:
    """Nested lists and mappings."""
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    )


def places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Lists the way to everything in a state."""
    inside = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for name, part in inside:
        yield (*path, name)
        yield from places(part, (*path, name))


@st.composite
def changed(draw: st.DrawFn, state: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gives a place, and a copy of a state that cannot be right there.

    Something is missing, too much, of another type or shape, or no number that could be there.
    """
    *parents, name = draw(st.sampled_from(list(places(state))))
    wrong = copy.deepcopy(state)
    part: Any = wrong
    for parent in parents:
        part = part[parent]
    how = draw(st.sampled_from(["drop", "add", "value"]))
    if how == "drop":
        del part[name]
    elif how == "add" and isinstance(part, dict):
        part[draw(st.text(max_size=3).filter(lambda new: new not in part))] = part[name]
    else:
        part[name] = draw(_array(part[name]) if isinstance(part[name], np.ndarray) else _other(part[name]))
    return (*parents, name), wrong


def _other(value: Any) -> st.SearchStrategy[Any]:
    """What cannot stand for a number, a word, a list or a mapping."""
    strangers: list[Any] = [None, "x", [], {}, [[1]], {"a": 1}, np.zeros(3), -1, -0.5, 10**400, 2**127]
    if not isinstance(value, float):
        strangers += [float("nan"), 0.5]
    if not isinstance(value, bool):
        strangers += [True]
    return st.sampled_from([stranger for stranger in strangers if not _same(stranger, value)])


def _array(array: np.ndarray) -> st.SearchStrategy[Any]:
    """What cannot stand for an array."""
    options: list[Any] = [None, array.tolist(), array[None], array[..., :0], np.concatenate([array, array], -1)]
    with np.errstate(invalid="ignore"):
        options += [array.astype(other) for other in ("float32", "int32", "uint8", "complex64")]
    if array.size:
        values = {"i": [-1, -(2**63), 2**63 - 1], "f": [np.inf]}.get(array.dtype.kind, [])
        for value in values:
            for place in {0, array.size // 2, array.size - 1}:
                options.append(array.copy())
                options[-1].flat[place] = value
    return st.sampled_from([option for option in options if not _same(option, array)])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other
