"""The table of arms: sites in order, and from arms to the units that stay."""

import numpy as np
import pytest

from hf_mabprune.arms import ArmTable, KeepIndices


@pytest.fixture
def arms() -> ArmTable:
    """Two layers of 20 neurons in blocks of 8, and of two groups of two heads."""
    blocks, groups = [(0, 8), (8, 16), (16, 20)], [(0, 2), (2, 4)]
    rows = [("neuron", layer, *block) for layer in (0, 1) for block in blocks]
    rows += [("head", layer, *group) for layer in (0, 1) for group in groups]
    kind, layer, start, stop = zip(*rows, strict=True)
    index = [0, 1, 2, 0, 1, 2, 0, 1, 0, 1]
    ones = np.ones(10, dtype=np.int64)
    return ArmTable(np.array(kind), np.array(layer), np.array(index), np.array(start), np.array(stop), ones, 2 * ones)


def test_units_of_the_last_block_are_what_is_left(arms: ArmTable) -> None:
    assert len(arms) == 10
    assert arms.units.tolist() == [8, 8, 4, 8, 8, 4, 2, 2, 2, 2]


def test_sites_come_in_the_order_of_the_table(arms: ArmTable) -> None:
    groups = [(kind, layer, rows.tolist()) for kind, layer, rows in arms.groups()]
    assert groups == [
        ("neuron", 0, [0, 1, 2]),
        ("neuron", 1, [3, 4, 5]),
        ("head", 0, [6, 7]),
        ("head", 1, [8, 9]),
    ]
    assert arms.of_kind("neuron").tolist() == [0, 1, 2, 3, 4, 5]
    assert arms.of_kind("head").tolist() == [6, 7, 8, 9]


def test_layers_are_ordered_as_numbers() -> None:
    layer = np.arange(12)
    arms = ArmTable(np.array(["neuron"] * 12), layer, 0 * layer, 0 * layer, 1 + 0 * layer, layer, layer)
    assert [layer for _, layer, _ in arms.groups()] == list(range(12))


def test_from_arms_to_units(arms: ArmTable) -> None:
    kept = np.array([True, False, True, False, False, True, False, True, True, True])
    keep = arms.kept_units(kept)
    assert {layer: units.tolist() for layer, units in keep.neurons.items()} == {
        0: [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19],
        1: [16, 17, 18, 19],
    }
    assert {layer: units.tolist() for layer, units in keep.heads.items()} == {0: [2, 3], 1: [0, 1, 2, 3]}
    assert keep.of("neuron") is keep.neurons
    assert keep.of("head") is keep.heads
    assert keep.sizes("neuron") == {0: 12, 1: 4}
    assert keep.sizes("head") == {0: 2, 1: 4}


def test_a_site_that_loses_everything_is_empty_not_missing(arms: ArmTable) -> None:
    kept = np.ones(10, dtype=bool)
    kept[[0, 1, 2]] = False
    assert arms.kept_units(kept).sizes("neuron") == {0: 0, 1: 20}


def test_kinds_without_arms_keep_everything(arms: ArmTable) -> None:
    rows = arms.of_kind("neuron")
    neurons = ArmTable(*(getattr(arms, name)[rows] for name in arms.to_frame().columns))
    keep = neurons.kept_units(np.ones(6, dtype=bool))
    assert keep.heads == {}
    assert keep == KeepIndices(neurons=keep.neurons, heads={})


def test_frame_has_one_row_an_arm(arms: ArmTable) -> None:
    frame = arms.to_frame()
    assert list(frame.columns) == ["kind", "layer", "index", "start", "stop", "parameters", "macs"]
    assert frame.iloc[5].tolist() == ["neuron", 1, 2, 16, 20, 1, 2]
    assert len(frame) == 10
