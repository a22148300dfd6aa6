"""A table of numbers and categories, some of them missing, whose rows repeat here and there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from research.studies.paper.tables import INDEX, Table
from tests.seeds import moved

ROWS = 120


def small_table(classifies: bool = True) -> Table:
    """Three classes, or a number, that two of the features decide."""
    rng = np.random.default_rng(moved(0))
    size, weight = rng.normal(size=ROWS), rng.normal(size=ROWS)
    colour = rng.choice(["red", "green", "blue"], ROWS).astype(object)
    target = size - (colour == "red")
    size[rng.random(ROWS) < 0.1] = np.nan
    colour[rng.random(ROWS) < 0.1] = np.nan
    features = pd.DataFrame({"size": size, "weight": weight, "colour": colour, "doors": rng.integers(2, 5, ROWS)})
    features.iloc[90:100] = features.iloc[:10].to_numpy()
    features = features.astype({"size": float, "weight": float, "doors": int})
    classes = np.array(["low", "middle", "high"], dtype=object)[np.digitize(target, [-0.8, 0.3])]
    return Table("small", classifies, features, classes if classifies else target, ["doors"])


def write_tables(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Writes the table of classes as `small` and that of numbers as `numbers`, and their index; gives the index.

    Args:
        folder: Folder of the tables.
        changes: Fields of the index that are others than is right.
    """
    index = []
    for name, table in (("small", small_table()), ("numbers", small_table(classifies=False))):
        table.features.assign(kind=table.target).to_csv(folder / f"{name}.csv", index=False)
        entry = {
            "name": name,
            "file": f"{name}.csv",
            "target": "kind",
            "rows": ROWS,
            "feature_names": list(table.features),
        }
        entry |= {"task": "classification" if table.classifies else "regression", "categorical": ["colour", "doors"]}
        index.append(entry | {"missing_cells": int(table.features.isna().sum().sum()), **changes})
    (folder / INDEX).write_text(json.dumps(index))
    return index
