"""A small suite of the quality benchmark, on the embedded model."""

from pathlib import Path
from typing import Any

import yaml

QUICKSTART = "configs/quickstart.yaml"
SMALL = {"evaluation_examples": 32, "calibration_examples": 16, "batch_size": 8, "max_length": 32}
SUITE: dict[str, Any] = {
    "runs": {"first": {"config": QUICKSTART, "task": SMALL}, "second": {"config": QUICKSTART, "task": SMALL}},
    "targets": [{"heads": [0.25, 0.5]}],
    "methods": {
        "magnitude": {"criterion": "magnitude"},
        "sweep": {"policy": "sweep", "search": {"rounds": 1, "pulls_per_arm": 1}},
        "evolution": {"control": "evolution", "sweeps": 0.1},
    },
    "compensations": [None, "mask_tuning"],
    "planned": [{"method": "sweep", "against": "magnitude"}],
}


def write(folder: Path, content: Any, name: str = "suite.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return str(path)
