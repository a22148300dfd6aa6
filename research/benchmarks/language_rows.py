"""The rows of the language-model benchmark, kept in a file that a run goes on with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hf_mabprune.runtime.files import write_atomically
from research.benchmarks.specs import Allocation

Measured = dict[str, Any]


class Cell(NamedTuple):
    """What one row is of; `size` is the part of the parameters of attentions and FFNs that is to go."""

    method: str
    size: float
    allocation: Allocation
    compensation: str


@dataclass(frozen=True)
class Rows:
    """Keeps rows on disk.

    Attributes:
        path: JSON-lines file.
        settings: Digest of what all rows depend on.
    """

    path: Path | str
    settings: str

    def read(self) -> list[Measured]:
        """Reads all rows, none if there is no file.

        Raises:
            ValueError: If there are some of other settings.
        """
        rows = read_rows(self.path) if Path(self.path).exists() else []
        if any(row["settings"] != self.settings for row in rows):
            raise ValueError(f"{self.path} has rows of other settings or texts; use another --out")
        return rows

    def there(self) -> set[Cell]:
        """Lists the cells that have a row."""
        return {cell_of(row) for row in self.read()}

    def lowest(self, cell: Cell) -> float:
        """Gives the lowest KL divergence on the validation split that another allocation of a cell has so far."""
        same = [row for row in self.read() if cell_of(row)._replace(allocation=cell.allocation) == cell]
        return min((row["validation_kl"] for row in same), default=float("inf"))

    def add(self, row: Measured) -> None:
        """Adds a row."""
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(each) for each in [*self.read(), {**row, "settings": self.settings}]]
        write_atomically(Path(self.path), "".join(f"{line}\n" for line in lines).encode())


def read_rows(path: str | Path) -> list[Measured]:
    """Reads the rows of a file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def cell_of(row: Measured) -> Cell:
    """Says what a row is of."""
    return Cell(*(row[name] for name in Cell._fields))


def in_short(row: Measured) -> str:
    """Says in one line what a row holds."""
    texts = [f"{name} KL {text['kl']:.4g} perplexity {text['perplexity']:.4g}" for name, text in row["texts"].items()]
    found = [f"{row['gone']:.2%} gone", f"validation KL {row['validation_kl']:.4g}", *texts]
    return ", ".join([*found, f"{row['seconds']:.0f} s"])
