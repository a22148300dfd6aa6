"""What a run found, as data: report.json, the console table and the model card are views of it."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from hf_mabprune.errors import outside, printable, without_credentials_in
from hf_mabprune.search.result import ROUND
from hf_mabprune.states import read_state

PACKAGES = ("hf_mabprune", "torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors")
STRICT = ConfigDict(extra="forbid", strict=True)
LONGEST = 100_000  # characters of a text, which no run comes near


def _or_nan(value: Any) -> Any:
    return math.nan if value is None else value


def _in_order(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"an interval must be in order, got {interval}")
    return interval


def _as_rounds(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    filled = [{name: _or_nan(value) for name, value in done.items()} for done in rounds]
    return [read_state("a round", done, ROUND, {}) for done in filled]


# What fields may hold where a report is read back. JSON has null in the place of a number that is not finite.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Length = Annotated[int, Field(ge=0, le=10_000_000)]  # of an input that is made to count MACs
Number = Annotated[float, BeforeValidator(_or_nan)]
Positive = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=LONGEST)]
Interval = Annotated[tuple[Number, Number], AfterValidator(_in_order)]
Layout = Literal["uniform", "per_layer"]
Target = dict[Annotated[str, Field(pattern=r"^[a-z_]+$")], Share]  # it names folders
Options = dict[Text, Any]
Rounds = Annotated[list[dict[str, Any]], AfterValidator(_as_rounds)]


@dataclass(frozen=True)
class ModelFigures:
    """One model, measured.

    Attributes:
        macs: Multiply-accumulates of one forward pass over one sequence of `sequence_length` tokens; over one example
            where that is 0.
        loss: Mean loss on the test split: cross-entropy, the squared error of a regression, or `kl` again where a task
            has none.
        kl: Mean KL divergence of the outputs from the dense model's, in nats, on the test split; None where there
            is no dense model to compare with.
        metrics: name -> value on the test split.
        intervals: name -> 95% bootstrap interval over test examples.
        latency_ms: Median time of one forward pass over one batch of the test split; None where not measured.
        checkpoint_bytes: Of the weights on disk; None where not written.
        kl_bound: With 95% confidence, the mean of KL clipped at 1 nat is at most this on data like the test split.
        changed: Part of an example's answers that are another class than the dense model's, mean over the test split;
            of the test examples, where each has one answer.
        changed_bound: With 95% confidence, that part is at most this on data like the test split.
        behind: For the dense model and for a control, by how much the main metric of the pruned model is above its
            own, with the 95% interval of the difference (paired bootstrap over the same test examples).
        kl_above: For a control, by how much its KL is above that of the pruned model, in the same way.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    parameters: Count
    ffn_parameters: Count
    attention_parameters: Count
    macs: Count
    loss: Number
    kl: float | None
    metrics: dict[Text, Number]
    intervals: dict[Text, Interval]
    latency_ms: Positive | None = None
    checkpoint_bytes: Count | None = None
    kl_bound: float | None = None
    changed: Share | None = None
    changed_bound: Share | None = None
    behind: tuple[Number, Number, Number] | None = None
    kl_above: tuple[Number, Number, Number] | None = None


@dataclass(frozen=True)
class RandomFigures:
    """One draw of the random control: the same target, layout and floors, arms drawn at random."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    seed: Count
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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    policy: Options
    reward: Text
    arms: Count
    pulls: Count
    forward_tokens: Count
    backward_tokens: Count
    seconds: Positive
    processes: Count
    stopped_because: Text
    rounds: Rounds
    broken_batches: list[Count] = field(default_factory=list)
    rule: Options = field(default_factory=dict)
    criterion: Text | Options | None = None


@dataclass(frozen=True)
class SizeFigures:
    """One of several sizes cut from the same search, in short."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text
    target: Target
    layout: Layout
    parameters: Count
    macs: Count
    metric: Number  # the main metric on the test split
    interval: Interval
    random: Number  # mean of the main metric over the random draws of that size
    latency_ms: Positive | None
    speedup: Positive | None  # latency of the dense model over this one's, measured in turns


@dataclass(frozen=True)
class Report:
    """Everything about one run.

    Attributes:
        alone: Criterion -> the model that it leaves when it chooses alone, at the same size, refitted alike.
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
        dense_sha256: Of the dense model's weights (`runtime.hashes`); empty where a run did not say it.
        calibration_sha256: Of the calibration batches, in the same way.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Text
    architecture: Text
    task: Text
    dataset: Text
    layout: Layout
    layout_reason: Text
    target: Target
    seed: Count
    device: Text
    sequence_length: Length
    main_metric: Text
    greater_is_better: bool
    before: ModelFigures
    after: ModelFigures
    random: list[RandomFigures]
    kept: dict[Text, dict[Text, tuple[Count, Count]]]
    search: SearchFigures
    compensation: Options | None = None
    recovery: Options | None = None
    alone: dict[Text, ModelFigures] = field(default_factory=dict)
    sizes: list[SizeFigures] = field(default_factory=list)
    reload: dict[Text, Number] = field(default_factory=dict)
    warnings: list[Text] = field(default_factory=list)
    dense_sha256: Text = ""
    calibration_sha256: Text = ""
    versions: dict[Text, Text] = field(default_factory=lambda: installed_versions())

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(_without_nan(without_credentials_in(asdict(self))), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, path: str | Path) -> "Report":
        """Reads a report.json back.

        Raises:
            ValueError: If it is no report, was written by another version whose fields differ, or contradicts itself.
        """
        with outside(f"{path} is not a report of this version of hf_mabprune"):
            text = Path(path).read_text(encoding="utf-8")
            json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_repeats)
            try:
                report = TypeAdapter(cls).validate_json(text)
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(str(part) for part in fault["loc"])
                raise ValueError(f"{where}: {fault['msg']}, got {fault['input']!r:.60}") from None
            for wrong in report.contradictions():
                raise ValueError(wrong)
            return report

    def contradictions(self) -> Iterator[str]:
        """Says what cannot be, though every field is as it is described."""
        names = self.before.metrics.keys()
        for figures in (self.before, self.after, *self.controls().values()):
            if figures.metrics.keys() != names or not {self.main_metric} <= names & figures.intervals.keys():
                yield f"metrics must be the same in all rows, {self.main_metric!r:.60} with its interval among them"
            if figures.changed_bound is not None and figures.changed is None:
                yield "changed_bound must come with changed"
        if self.before.ffn_parameters + self.before.attention_parameters == 0:
            yield "before must have FFN or attention parameters"
        for site, (kept, before) in ((site, counts) for sites in self.kept.values() for site, counts in sites.items()):
            if not 0 <= kept <= before or before == 0:
                yield f"kept must be (units kept, units before), got {kept} and {before} for {site!r:.60}"

    def not_sliced(self) -> list[str] | None:
        """Names of the weights that are no plain slices of the dense model's, in the state dict of the model; None for
        all of them, where training changed them."""
        if self.recovery is not None:
            return None
        return list(self.compensation.get("changed", [])) if self.compensation else []

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

    def against_random(self) -> str:
        """How many of the random draws the pruned model beats, and how many beyond doubt; empty where none was
        compared in pairs."""
        draws = [draw.figures for draw in self.random if draw.figures.behind and draw.figures.kl_above]
        if not draws:
            return ""
        sign = 1 if self.greater_is_better else -1
        better = [sorted(sign * value for value in figures.behind or ()) for figures in draws]
        closer = [sorted(figures.kl_above or ()) for figures in draws]
        some = "1 random draw" if len(draws) == 1 else f"{len(draws)} random draws"
        return (
            f"of {some}, on the same examples, {printable(self.main_metric)} is better than {_beaten(better)}, "
            f"KL lower than {_beaten(closer)}"
        )

    def table(self) -> str:
        """before | after | random control, as text for a terminal."""
        rows = {"before": self.before, "after": self.after}
        return _table(self.main_metric, rows | self.controls())

    def controls(self) -> dict[str, ModelFigures]:
        """What else was made of the same size: criteria that chose alone, and random draws."""
        alone = {f"{name} alone": figures for name, figures in self.alone.items()}
        return alone | {f"random {draw.seed}": draw.figures for draw in self.random}


def _beaten(differences: list[list[float]]) -> str:
    """Counts differences that are positive, and of them those whose interval is; each is (low, value, high)."""
    won = sum(value > 0 for _, value, _ in differences)
    certain = sum(low > 0 for low, *_ in differences)
    return f"{won} ({certain} by more than the 95% interval)"


def figures_table(main_metric: str, figures: ModelFigures) -> str:
    """One model, as text for a terminal."""
    return _table(main_metric, {"": figures})


def _table(main_metric: str, rows: dict[str, ModelFigures]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("on test")
    headings = ("params", "MACs", f"{printable(main_metric)} (95%)", "loss", "KL", "ms", "MB", "behind (95%)")
    compared = any(figures.behind for figures in rows.values())
    shown = len(headings) if compared else len(headings) - 1
    for heading in headings[:shown]:
        table.add_column(heading, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *_cells(main_metric, figures)[:shown])
    console = Console(width=110, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _cells(main_metric: str, figures: ModelFigures) -> list[str]:
    low, high = figures.intervals[main_metric]
    scale = 100 if main_metric != "perplexity" else 1
    behind = [f"{scale * value:+.1f}" for value in figures.behind or ()]
    return [
        _short(figures.parameters),
        _short(figures.macs),
        f"{scale * figures.metrics[main_metric]:.1f} ({scale * low:.1f}-{scale * high:.1f})",
        f"{figures.loss:.3f}",
        "" if figures.kl is None else f"{figures.kl:.4f}",
        "" if figures.latency_ms is None else f"{figures.latency_ms:.1f}",
        "" if figures.checkpoint_bytes is None else f"{figures.checkpoint_bytes / 1e6:.1f}",
        f"{behind[0]} ({behind[1]} to {behind[2]})" if behind else "",
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


def _without_nan(value: Any) -> Any:
    """Puts None in the place of numbers that JSON has no words for."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is no number of JSON")


def _finite(token: str) -> float:
    if not math.isfinite(number := float(token)):
        raise ValueError(f"{token:.20} is too large a number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(name for name, _ in pairs):.60}")
    return found


def _short(count: int) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{suffix}"
    return str(count)
