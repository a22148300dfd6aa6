"""What a run found, as data: report.json, the console table and the model card are views of it."""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hf_mabprune.errors import printable, without_credentials_in

PACKAGES = ("hf_mabprune", "torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors")


@dataclass(frozen=True)
class ModelFigures:
    """One model, measured.

    Attributes:
        macs: Multiply-accumulates of one forward pass over one sequence of `sequence_length` tokens; over one example
            where that is 0.
        loss: Mean loss on the test split: cross-entropy, or the squared error of a regression.
        kl: Mean KL divergence of the outputs from the dense model's, in nats, on the test split; None where there
            is no dense model to compare with.
        metrics: name -> value on the test split.
        intervals: name -> 95% bootstrap interval over test examples.
        latency_ms: Median time of one forward pass over one batch of the test split; None where not measured.
        checkpoint_bytes: Of the weights on disk; None where not written.
        kl_bound: With 95% confidence, the mean of KL clipped at 1 nat is at most this on data like the test split.
        changed: Part of the test examples whose answer is another class than the dense model's.
        changed_bound: With 95% confidence, that part is at most this on data like the test split.
    """

    parameters: int
    ffn_parameters: int
    attention_parameters: int
    macs: int
    loss: float
    kl: float | None
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    latency_ms: float | None = None
    checkpoint_bytes: int | None = None
    kl_bound: float | None = None
    changed: float | None = None
    changed_bound: float | None = None


@dataclass(frozen=True)
class RandomFigures:
    """One draw of the random control: the same target, layout and floors, arms drawn at random."""

    seed: int
    figures: ModelFigures


@dataclass(frozen=True)
class SearchFigures:
    """What the search did and cost.

    Attributes:
        policy: Bandit policy and its options; empty where a criterion chose alone.
        rounds: What every round did (`search.result.Round`).
        rule: Removal rule and its options; empty where a criterion chose alone.
        criterion: Name and options of the criterion that chose alone; None where pulls were made.
    """

    policy: dict[str, Any]
    reward: str
    arms: int
    pulls: int
    forward_tokens: int
    backward_tokens: int
    seconds: float
    processes: int
    stopped_because: str
    rounds: list[dict[str, Any]]
    broken_batches: list[int] = field(default_factory=list)
    rule: dict[str, Any] = field(default_factory=dict)
    criterion: str | dict[str, Any] | None = None


@dataclass(frozen=True)
class SizeFigures:
    """One of several sizes cut from the same search, in short."""

    name: str
    target: dict[str, float]
    layout: str
    parameters: int
    macs: int
    metric: float  # the main metric on the test split
    interval: tuple[float, float]
    random: float  # mean of the main metric over the random draws of that size
    latency_ms: float | None
    speedup: float | None  # latency of the dense model over this one's, measured in turns


@dataclass(frozen=True)
class Report:
    """Everything about one run.

    Attributes:
        kept: kind -> name of the site -> (units kept, units before).
        layout_reason: Why the layout is what it is.
        main_metric: The name in `metrics` that the table shows.
        greater_is_better: Of the main metric.
        compensation: What a refit of the kept projections did and cost (`compensation.CompensationFigures`), by its
            `name`; None where there was none. The random draws had the same.
        recovery: What training did and cost (`recovery.RecoveryFigures`); None where there was none. The random draws
            were not trained.
        sizes: All sizes that were cut from the search, this one among them.
        reload: `max_logit_difference` between the model in memory and the checkpoint read back.
    """

    model: str
    architecture: str
    task: str
    dataset: str
    layout: str
    layout_reason: str
    target: dict[str, float]
    seed: int
    device: str
    sequence_length: int
    main_metric: str
    greater_is_better: bool
    before: ModelFigures
    after: ModelFigures
    random: list[RandomFigures]
    kept: dict[str, dict[str, tuple[int, int]]]
    search: SearchFigures
    compensation: dict[str, Any] | None = None
    recovery: dict[str, Any] | None = None
    sizes: list[SizeFigures] = field(default_factory=list)
    reload: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(without_credentials_in(asdict(self)), indent=2)

    @classmethod
    def from_json(cls, path: str | Path) -> "Report":
        """Reads a report.json back.

        Raises:
            ValueError: If the file was written by another version whose fields differ.
        """
        try:
            raw = json.loads(Path(path).read_text())
            raw["before"], raw["after"] = _figures(raw["before"]), _figures(raw["after"])
            raw["random"] = [RandomFigures(draw["seed"], _figures(draw["figures"])) for draw in raw["random"]]
            raw["search"] = SearchFigures(**raw["search"])
            raw["sizes"] = [SizeFigures(**{**size, "interval": tuple(size["interval"])}) for size in raw["sizes"]]
            raw["kept"] = {
                kind: {site: tuple(counts) for site, counts in sites.items()} for kind, sites in raw["kept"].items()
            }
            return cls(**raw)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a report of this version of hf_mabprune: {error}") from None

    @property
    def size_name(self) -> str:
        """The target in a word, e.g. neurons-0.5-heads-0.25."""
        return "-".join(f"{name}-{fraction:g}" for name, fraction in self.target.items())

    def in_short(self) -> SizeFigures:
        """The row of this size in a table of sizes."""
        slow, fast = self.before.latency_ms, self.after.latency_ms
        metric = self.main_metric
        return SizeFigures(
            name=self.size_name,
            target=self.target,
            layout=self.layout,
            parameters=self.after.parameters,
            macs=self.after.macs,
            metric=self.after.metrics[metric],
            interval=self.after.intervals[metric],
            random=sum(draw.figures.metrics[metric] for draw in self.random) / len(self.random),
            latency_ms=fast,
            speedup=slow / fast if slow and fast else None,
        )

    def numbers(self) -> dict[str, float]:
        """The main figures under flat names, for trackers."""
        after = self.after
        flat = {"parameters": after.parameters, "macs": after.macs, "loss": after.loss, "kl": after.kl or 0.0}
        flat |= after.metrics
        return {f"{self.size_name}/{name}": float(value) for name, value in flat.items()}

    def removed_fraction(self) -> float:
        """Part of the FFN and attention parameters that is gone."""
        before = self.before.ffn_parameters + self.before.attention_parameters
        return 1 - (self.after.ffn_parameters + self.after.attention_parameters) / before

    def certificate(self) -> str:
        """What holds with 95% confidence on data like the test split, in a sentence; empty where nothing is known."""
        after = self.after
        said = []
        if after.kl_bound is not None:
            said.append(f"mean KL (each example's clipped at 1 nat) at most {after.kl_bound:.3g}")
        if after.changed_bound is not None:
            said.append(f"at most {after.changed_bound:.1%} of answers changed ({after.changed:.1%} were)")
        return "with 95% confidence on data like the test split: " + ", ".join(said) if said else ""

    def table(self) -> str:
        """before | after | random control, as text for a terminal."""
        rows = {"before": self.before, "after": self.after}
        rows |= {f"random {draw.seed}": draw.figures for draw in self.random}
        return _table(self.main_metric, rows)


def figures_table(main_metric: str, figures: ModelFigures) -> str:
    """One model, as text for a terminal."""
    return _table(main_metric, {"": figures})


def _table(main_metric: str, rows: dict[str, ModelFigures]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("on test")
    for heading in ("params", "MACs", f"{printable(main_metric)} (95%)", "loss", "KL", "ms", "MB"):
        table.add_column(heading, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *_cells(main_metric, figures))
    console = Console(width=110, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _cells(main_metric: str, figures: ModelFigures) -> list[str]:
    low, high = figures.intervals[main_metric]
    scale = 100 if main_metric != "perplexity" else 1
    return [
        _short(figures.parameters),
        _short(figures.macs),
        f"{scale * figures.metrics[main_metric]:.1f} ({scale * low:.1f}-{scale * high:.1f})",
        f"{figures.loss:.3f}",
        "" if figures.kl is None else f"{figures.kl:.4f}",
        "" if figures.latency_ms is None else f"{figures.latency_ms:.1f}",
        "" if figures.checkpoint_bytes is None else f"{figures.checkpoint_bytes / 1e6:.1f}",
    ]


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _figures(raw: dict[str, Any]) -> ModelFigures:
    intervals = {name: (low, high) for name, (low, high) in raw["intervals"].items()}
    return ModelFigures(**{**raw, "intervals": intervals})


def _short(count: int) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{suffix}"
    return str(count)
