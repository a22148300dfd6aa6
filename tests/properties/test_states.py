"""Saved searches: whatever is changed in one is refused, or changes nothing."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mabprune.config import SearchConfig
from hf_mabprune.policies import POLICIES
from hf_mabprune.runtime.saved import pack, read_searches, unpack
from hf_mabprune.search.loop import Search
from tests.properties.values import SCALARS, changed
from tests.search.known_arms import ARMS, KnownArms, plan

PATH = Path("search_state.safetensors")
STEPS = {"in_a_round": 7, "between_rounds": 6, "over": 99}


def make(policy: str) -> Search:
    config = SearchConfig(rounds=3, pulls_per_arm=4)
    return Search(KnownArms(0.3), POLICIES.get(policy)(arms=ARMS, seed=0), [plan()], config, max_broken=1)  # type: ignore[arg-type]


def run(search: Search, steps: int = 10_000) -> Search:
    for _, _ in zip(range(steps), search.run(), strict=False):
        pass
    return search


@cache
def state_of(policy: str, steps: int) -> dict[str, Any]:
    return run(make(policy), steps).state_dict()


@cache
def selection_of(policy: str) -> list[Any]:
    return selection(run(make(policy)))


def selection(search: Search) -> list[Any]:
    result = search.finished()
    return [part.tolist() for part in (result.order, result.kept, result.pulls, result.removed_round)]


@pytest.mark.parametrize("policy", POLICIES.names())
@given(data=st.data())
def test_a_changed_state_is_refused_or_ends_in_the_same_selection(policy: str, data: st.DataObject) -> None:
    steps = data.draw(st.sampled_from(list(STEPS.values())))
    place, state = data.draw(changed(state_of(policy, steps)))
    search = make(policy)
    try:
        search.load_state_dict(state)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return
    assert selection(run(search)) == selection_of(policy), place


@pytest.mark.parametrize(
    "wrong",
    [{"fingerprint": None}, {"earlier": {}}, {"earlier": [1]}, {"earlier": [{}] * 2}, {"search": []}, {"more": 1}],
    ids=str,
)
def test_a_changed_list_of_searches_is_refused_in_one_line(wrong: dict[str, Any]) -> None:
    state = {"fingerprint": "abc", "earlier": [{"one": 1}], "search": {"two": np.arange(3)}}
    assert len(read_searches(pack(state), PATH, "abc", stages=2)) == 2
    with pytest.raises(ValueError, match=r"start anew with output.overwrite: true and without --resume") as caught:
        read_searches(pack(state | wrong), PATH, "abc", stages=2)
    assert "\n" not in str(caught.value)


ARRAYS = st.builds(
    lambda kind, shape: (np.arange(np.prod(shape)) % 7).reshape(shape).astype(kind),
    st.sampled_from(["bool", "int64", "float64", "uint8"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
PACKABLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats(allow_nan=False) | NAMES | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(st.dictionaries(NAMES, PACKABLE, max_size=4))
def test_states_are_packed_without_loss(state: dict[str, Any]) -> None:
    assert same(unpack(pack(state), PATH), state)


@given(st.data())
def test_any_flipped_bit_is_noticed(data: st.DataObject) -> None:
    saved = bytearray(pack({"search": state_of("race", 7)}))
    bit = data.draw(st.integers(0, 8 * len(saved) - 1) | st.integers(0, 8 * 3000))
    saved[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match=r"start anew with output.overwrite: true and without --resume"):
        unpack(bytes(saved), PATH)


@given(st.data())
def test_a_file_that_ends_early_or_late_is_noticed(data: st.DataObject) -> None:
    saved = pack({"search": state_of("race", 7)})
    end = data.draw(st.integers(0, len(saved) - 1))
    for wrong in (saved[:end], saved + data.draw(st.binary(min_size=1, max_size=9)), saved[:end] + saved[end + 1 :]):
        with pytest.raises(ValueError, match=r"start anew with output.overwrite: true and without --resume"):
            unpack(wrong, PATH)


@given(st.dictionaries(st.text(max_size=3), SCALARS.filter(lambda value: value != "\ud800"), max_size=3))
def test_what_is_no_run_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is no saved search: a state of a run has"):
        read_searches(pack(state), PATH, "abc", stages=1)
