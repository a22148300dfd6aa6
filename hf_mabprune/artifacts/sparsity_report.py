"""What `mabprune sparsify` leaves beside the weights: figures as JSON, and a card that says what zeros are not."""

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_mabprune.artifacts.markdown import code, text
from hf_mabprune.artifacts.redaction import hub_model, last_part
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.tables import figures_table, markdown_table
from hf_mabprune.errors import without_credentials_in
from hf_mabprune.evaluation.figures import ModelFigures
from hf_mabprune.evaluation.report import installed_versions, without_nan
from hf_mabprune.evaluation.terminal_table import terminal_table

TAGS = ["pruned", "sparse", "hf_mabprune"]
PLACES = {"global": "over all modules", "module": "in each module", "unit": "in each unit"}
CHUNK = 2**24  # bytes that are compressed at a time
LEVEL = 1  # of zlib: of zeros, higher ones make little more
HONEST = (
    "Every zero is stored and multiplied like any other number: the file is as large and the model as slow as the "
    "dense one. Zeros pay where the file is compressed or a sparse kernel runs it."
)


@dataclass(frozen=True)
class FileSizes:
    """The files of weights of one model, in bytes.

    Attributes:
        stored: As they are.
        compressed: By zlib at level 1.
    """

    stored: int
    compressed: int

    @classmethod
    def of(cls, files: Iterable[Path]) -> "FileSizes":
        """Measures files."""
        sizes = [(path.stat().st_size, sum(map(len, _compressed(path)))) for path in files]
        return cls(sum(stored for stored, _ in sizes), sum(compressed for _, compressed in sizes))


@dataclass(frozen=True)
class SparsityReport:
    """The zeros of a checkpoint, and what they did.

    Attributes:
        model: Hub name of the dense model, or the last part of its path.
        model_class: Class of transformers that loads it.
        kind, criterion, scope, rate, exclude, head, seed: As asked for (`sparsity.sparsify`).
        zeros, weights: Counted weights that are zero in the checkpoint, and all that were counted.
        parameters: All parameters.
        modules: Part that is zero, by name of the module.
        left_out: Why other linear layers and convolutions were not counted, by name.
        before_files, after_files: Sizes of the files of the dense model, written in the same way, and of this one.
        task, main_metric, before, after: Quality on the test split and time of both; None without data.
        recovery: What training under the masks was and cost; None where there was none.
    """

    model: str
    model_class: str
    kind: str
    criterion: str
    scope: str
    rate: float
    exclude: list[str]
    head: bool
    seed: int
    zeros: int
    weights: int
    parameters: int
    modules: dict[str, float]
    left_out: dict[str, str]
    before_files: FileSizes
    after_files: FileSizes
    task: str | None = None
    main_metric: str | None = None
    before: ModelFigures | None = None
    after: ModelFigures | None = None
    recovery: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=installed_versions)

    def to_json(self) -> str:
        """The text of sparsity.json."""
        return json.dumps(without_nan(without_credentials_in(asdict(self))), indent=2, allow_nan=False)

    def sentence(self) -> str:
        """Says what is zero."""
        return (
            f"{self.zeros:,} of {self.weights:,} counted weights are zero ({self.zeros / self.weights:.2%}), of "
            f"{self.parameters:,} parameters in all: {self.kind}, by {self.criterion}, {PLACES[self.scope]}"
        )

    def summary(self, folder: str | Path) -> str:
        """What a terminal shows."""
        lines = [self.sentence()]
        if self.before and self.after and self.main_metric:
            lines.append(terminal_table(self.main_metric, {"dense": self.before, "sparse": self.after}))
        dense, sparse = self.before_files, self.after_files
        lines.append(
            f"weights: {_mb(sparse.stored)} MB ({_mb(dense.stored)} dense), "
            f"compressed {_mb(sparse.compressed)} MB ({_mb(dense.compressed)} dense)"
        )
        lines += [HONEST, f'load it: {self.model_class}.from_pretrained("{folder}")']
        return "\n".join(lines) + "\n"

    def write(self, folder: RunFolder) -> None:
        """Writes sparsity.json and the card."""
        folder.details.mkdir(exist_ok=True)
        folder.sparsity.write_text(self.to_json())
        folder.card.write_text(self.card())

    def card(self) -> str:
        """The text of the model card; it holds no local path."""
        base = hub_model(self.model)
        data = ModelCardData(base_model=base, library_name="transformers", tags=TAGS)
        dense, sparse = self.before_files, self.after_files
        files = markdown_table(
            ["", "weights (MB)", "compressed (MB)"],
            [
                [name, _mb(sizes.stored), _mb(sizes.compressed)]
                for name, sizes in (("dense", dense), ("**sparse**", sparse))
            ],
        )
        parts = [
            f"---\n{data.to_yaml()}\n---",
            f"# {text(last_part(self.model))}-sparse",
            f"This is {code(last_part(self.model))} with zeros: {text(self.sentence())}. Made by `mabprune sparsify`.",
            f"**No smaller file, no faster dense model.** {HONEST} Compressed is by zlib, level {LEVEL}.",
            files,
        ]
        if self.before and self.after and self.main_metric:
            rows = {"dense": self.before, "**sparse**": self.after}
            parts.append(f"On the test split of task {code(self.task)}, with 95% bootstrap intervals over examples:")
            parts.append(figures_table(rows, self.main_metric))
        else:
            parts.append("Quality was not measured: no data were given.")
        parts.append(
            f"```python\nfrom transformers import {self.model_class}\n\n"
            f'model = {self.model_class}.from_pretrained("path/to/this/folder")\n```'
        )
        parts += self._how()
        return "\n\n".join(parts) + "\n"

    def _how(self) -> Iterator[str]:
        """Gives what a reader may want to know besides."""
        trained = "nothing was trained after it"
        if self.recovery:
            trained = (
                f"then trained under the masks for {self.recovery['epochs']:g} epochs, {self.recovery['steps']} steps"
            )
        yield f"Asked for: rate {self.rate:g}, seed {self.seed}; {trained}."
        if self.left_out:
            rows = [[code(name), text(reason)] for name, reason in self.left_out.items()]
            yield "Not counted, besides embeddings and norms:\n\n" + markdown_table(["module", "why"], rows)
        rows = [[code(name), f"{share:.4f}"] for name, share in self.modules.items()]
        table = markdown_table(["module", "zeros"], rows)
        yield f"<details>\n<summary>Part that is zero, by module</summary>\n\n{table}\n\n</details>"


def _compressed(path: Path) -> Iterator[bytes]:
    """Compresses a file a piece at a time."""
    compressor = zlib.compressobj(LEVEL)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield compressor.compress(piece)
    yield compressor.flush()


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f}"
