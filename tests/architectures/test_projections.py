"""Rows that go with units: of fused matrices, interleaved, of any number a unit."""

import numpy as np
import pytest
from torch import nn

from hf_mabprune.architectures.projections import cuts, rows_of
from hf_mabprune.architectures.sites import GROUPS, UNITS, Rows, Site, SiteSpec, Stack


@pytest.mark.parametrize(
    ("rows", "kept", "index"),
    [  # 4 heads of 2, two of which share keys and values
        (Rows("qkv", (UNITS, GROUPS, GROUPS)), [2, 3], [4, 5, 6, 7, 10, 11, 14, 15]),
        (Rows("qkv", (UNITS, GROUPS, GROUPS), interleaved=True), [2, 3], [8, 9, 10, 11, 12, 13, 14, 15]),
        (Rows("qkv", (UNITS, UNITS)), [0, 1], [0, 1, 2, 3, 8, 9, 10, 11]),
        (Rows("qkv", (GROUPS,)), [0, 1], [0, 1]),
        (Rows("qkv"), [2, 3], [4, 5, 6, 7]),
    ],
)
def test_rows_of_fused_matrices(rows: Rows, kept: list[int], index: list[int]) -> None:
    outputs = sum(8 // (1 if part == UNITS else 2) for part in rows.parts)
    base = nn.ModuleDict({"layer": nn.ModuleDict({"qkv": nn.Linear(8, outputs), "o": nn.Linear(8, 8)})})
    spec = SiteSpec("head", "o", (rows,), units="heads", groups="groups")
    site = Site("layer.o", "head", Stack("layer", (spec,)), 0, 0, "layer.", spec, units=4, unit_size=2, group=2)
    output, weight, bias = cuts(base, site, np.array(kept))
    assert (output.path, output.dim) == ("layer.o.weight", 1)
    assert output.index.tolist() == [column for unit in kept for column in (2 * unit, 2 * unit + 1)]
    assert (weight.path, bias.path) == ("layer.qkv.weight", "layer.qkv.bias")
    assert weight.index.tolist() == bias.index.tolist() == index
    made = [each.index.tolist() for each in rows_of(base, site)]
    assert sorted(entry for block in made for entry in block) == list(range(outputs))
    assert len(made) == (1 if rows.interleaved else len(rows.parts))


@pytest.mark.parametrize("rows_a_head", [1, 3])
def test_rows_may_be_fewer_or_more_than_columns(rows_a_head: int) -> None:
    base = nn.ModuleDict({"layer": nn.ModuleDict({"q": nn.Linear(8, 4 * rows_a_head), "o": nn.Linear(8, 8)})})
    spec = SiteSpec("head", "o", (Rows("q"),), units="heads")
    site = Site("layer.o", "head", Stack("layer", (spec,)), 0, 0, "layer.", spec, units=4, unit_size=2)
    _, weight, bias = cuts(base, site, np.array([1, 3]))
    index = [head * rows_a_head + row for head in (1, 3) for row in range(rows_a_head)]
    assert weight.index.tolist() == bias.index.tolist() == index
