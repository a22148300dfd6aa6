"""The table of arms: sites in order, and from arms to the units that stay."""

import numpy as np
import pytest

from hf_mabprune.arms import ArmTable


@pytest.fixture
def arms() -> ArmTable:
    """Two layers of 20 neurons in blocks of 8, of two groups of two heads, and of three experts."""
    blocks, groups = [(0, 8), (8, 16), (16, 20)], [(0, 2), (2, 4)]
    experts = [(0, 1), (1, 2), (2, 3)]
    rows = [
        (f"layers.{layer}.{kind}", kind, layer, index, *units)
        for kind, arms in (("neuron", blocks), ("head", groups), ("expert", experts))
        for layer in (0, 1)
        for index, units in enumerate(arms)
    ]
    site, kind, layer, index, start, stop = zip(*rows, strict=True)
    ones = np.ones(16, dtype=np.int64)
    return ArmTable(
        np.array(site), np.array(kind), np.array(layer), np.array(index), np.array(start), np.array(stop), ones,
        2 * ones,
    )  # fmt: skip


def test_units_of_the_last_block_are_what_is_left(arms: ArmTable) -> None:
    assert len(arms) == 16
    assert arms.units.tolist() == [8, 8, 4, 8, 8, 4, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]


def test_sites_come_in_the_order_of_the_table(arms: ArmTable) -> None:
    assert [(site, rows.tolist()) for site, rows in arms.groups()] == [
        ("layers.0.neuron", [0, 1, 2]),
        ("layers.1.neuron", [3, 4, 5]),
        ("layers.0.head", [6, 7]),
        ("layers.1.head", [8, 9]),
        ("layers.0.expert", [10, 11, 12]),
        ("layers.1.expert", [13, 14, 15]),
    ]
    assert arms.kinds() == ["neuron", "head", "expert"]
    assert arms.of_kind("neuron").tolist() == [0, 1, 2, 3, 4, 5]
    assert arms.of_kind("head").tolist() == [6, 7, 8, 9]
    assert arms.of_kind("expert").tolist() == [10, 11, 12, 13, 14, 15]


def test_sites_keep_the_order_in_which_they_run() -> None:
    layer = np.arange(12)
    site = np.array([f"layers.{number}.down" for number in layer])  # layers.10 would come before layers.2 by name
    arms = ArmTable(site, np.array(["neuron"] * 12), layer, 0 * layer, 0 * layer, 1 + 0 * layer, layer, layer)
    assert [name for name, _ in arms.groups()] == site.tolist()
    assert [rows.tolist() for _, rows in arms.groups()] == [[number] for number in range(12)]


def test_from_arms_to_units(arms: ArmTable) -> None:
    kept = np.array([True, False, True, False, False, True, False, True, True, True, *[True, False, True] * 2])
    keep = arms.kept_units(kept)
    assert {site: units.tolist() for site, units in keep.items()} == {
        "layers.0.neuron": [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19],
        "layers.1.neuron": [16, 17, 18, 19],
        "layers.0.head": [2, 3],
        "layers.1.head": [0, 1, 2, 3],
        "layers.0.expert": [0, 2],
        "layers.1.expert": [0, 2],
    }
    assert all(type(site) is str for site in keep), "plain strings, as the sites of a model have"


def test_a_site_that_loses_everything_is_empty_not_missing(arms: ArmTable) -> None:
    kept = np.ones(16, dtype=bool)
    kept[[0, 1, 2]] = False
    keep = arms.kept_units(kept)
    assert len(keep["layers.0.neuron"]) == 0
    assert len(keep["layers.1.neuron"]) == 20


def test_kinds_without_arms_keep_everything(arms: ArmTable) -> None:
    rows = arms.of_kind("neuron")
    neurons = ArmTable(*(getattr(arms, name)[rows] for name in arms.to_frame().columns))
    keep = neurons.kept_units(np.ones(6, dtype=bool))
    assert neurons.kinds() == ["neuron"]
    assert {site: len(units) for site, units in keep.items()} == {"layers.0.neuron": 20, "layers.1.neuron": 20}


def test_frame_has_one_row_an_arm(arms: ArmTable) -> None:
    frame = arms.to_frame()
    assert list(frame.columns) == ["site", "kind", "layer", "index", "start", "stop", "parameters", "macs"]
    assert frame.iloc[5].tolist() == ["layers.1.neuron", "neuron", 1, 2, 16, 20, 1, 2]
    assert len(frame) == 16
