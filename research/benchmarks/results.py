"""The rows of the quality benchmark on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from research.benchmarks.suite import KEY, Cell, Suite
from research.parquet import write_parquet


class Results:
    """Keeps rows on disk. Several launches may write to one file, for each row is added under a lock.

    Args:
        path: Parquet file; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> pd.DataFrame:
        """Reads all rows, none if there is no file.

        Raises:
            ValueError: If the file holds something else.
        """
        if not self.path.exists():
            return pd.DataFrame(columns=[*KEY, "settings"])
        rows = pd.read_parquet(self.path)
        if "allocation" not in rows and "retained" in rows:
            raise ValueError(
                f"{self.path} has rows from before methods had two allocations, which cannot stand beside others: use "
                "another --out"
            )
        if missing := [name for name in (*KEY, "settings", "retained") if name not in rows]:
            raise ValueError(f"{self.path} holds no rows of this benchmark: no column {missing[0]}; use another --out")
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row, in the place of one of the same cell."""
        with FileLock(f"{self.path}.lock"):
            rows = pd.concat([self.read(), pd.DataFrame([row])]) if self.path.exists() else pd.DataFrame([row])
            write_parquet(self.path, rows.drop_duplicates(KEY, keep="last"))

    def missing(self, suite: Suite, cells: Sequence[Cell]) -> list[Cell]:
        """Finds the cells that have no row.

        Raises:
            ValueError: If a cell has one that was made with other settings.
        """
        rows = self.read()
        there = dict(zip(rows[KEY].itertuples(index=False, name=None), rows["settings"], strict=True))
        for cell in cells:
            if there.get(cell.key, fingerprint := cell.fingerprint(suite)) != fingerprint:
                raise ValueError(
                    f"{self.path} has cell {' / '.join(map(str, cell.key))} with other settings; give --redo to "
                    "measure it again, or another --out"
                )
        return [cell for cell in cells if cell.key not in there]
