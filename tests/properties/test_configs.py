"""Configs: anything is settings, or a ValueError; settings survive being written down."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hf_mabprune.config import PruneConfig, check, known_types
from tests.properties.values import SCALARS, json_values

KNOWN = sorted(known_types(PruneConfig))
WORDS = sorted({part for key in KNOWN for part in key.split(".")})
NAMES = [
    "auto",
    "race",
    "kl",
    "refit",
    "single",
    "float32",
    "magnitude",
    "least_squares",
    "neuron",
    "head",
    "train[:10]",
]
PARTS = [{"name": "ucb1", "c": 2.0}, {"name": "single"}, [0.2, 0.4], ["neuron"], {"text": "sentence"}]
LIKELY = st.sampled_from([*NAMES, *PARTS, 1, 2, 64, 0.3, True, None])
VALUES = LIKELY | json_values(st.sampled_from(WORDS) | st.text(max_size=4))


def enough() -> dict[str, Any]:
    """The least that a config must say."""
    return {
        "model": {"name": "bert-base-uncased"},
        "task": {"dataset": {"path": "glue", "name": "sst2"}},
        "prune": {"target": {"parameters": 0.3}},
        "output": {"dir": "runs/x"},
    }


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """A config that is all right, with some of its keys, known or not, given any values."""
    tree = enough()
    keys = st.sampled_from([*KNOWN, "unknown", "task.unknown"])
    for key, value in draw(st.dictionaries(keys, VALUES, max_size=4)).items():
        *parents, name = key.split(".")
        part: Any = tree
        for parent in parents:
            part = part.setdefault(parent, {}) if isinstance(part, dict) else part
        if isinstance(part, dict):
            part[name] = value
    return tree


@given(trees() | json_values(st.sampled_from(WORDS)) | SCALARS)
def test_anything_is_settings_or_refused_and_settings_survive_a_file(tree: Any) -> None:
    try:
        settings = check(tree)
    except ValueError as error:
        assert str(error)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(settings.to_yaml(), encoding="utf-8")
        assert PruneConfig.from_yaml(path) == settings
