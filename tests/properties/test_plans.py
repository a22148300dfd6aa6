"""What a checkpoint plans is data: anything is a plan, or refused by a ValueError."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mabprune.checkpoints.modeling_pruned import KEYS, NAMES, read_plan
from tests.properties.values import SCALARS, json_values

LAYER = "encoder.layer.0"
PATHS = st.sampled_from(["", LAYER, f"{LAYER}.attention.self", f"{LAYER}.output.dense.weight", "..", "__class__"])
INNER = st.sampled_from([*(name for names in NAMES.values() for name in names), "weight", "bias", "__dict__"])
SIZES = st.one_of(SCALARS, st.lists(st.integers(-1, 70), max_size=5))
SECTION = st.dictionaries(PATHS, st.one_of(SIZES, PATHS, st.dictionaries(INNER, SIZES, max_size=3)), max_size=3)
KEY = st.sampled_from(sorted({"format", *KEYS[1], *KEYS[3]}))
PLANS = st.dictionaries(KEY, SECTION | SCALARS, max_size=5).flatmap(
    lambda plan: st.sampled_from([1, 2, 3, 3, 4, "2", None, True]).map(lambda version: {**plan, "format": version})
)


@given(PLANS | json_values(KEY | st.text(max_size=5)))
def test_anything_is_a_plan_or_refused_in_one_line(plan: Any) -> None:
    try:
        read = read_plan(plan)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    assert read["format"] == 3 and read.keys() <= {"format", *KEYS[3]}
    assert read_plan(read) == read, "what was read can be read again"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_empty_plan_is_a_plan(version: int) -> None:
    assert read_plan({"format": version})["format"] == 3
