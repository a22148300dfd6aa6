"""What a run found, as data: report.json, the console table and the model card are views of it."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hf_mabprune.config import name_of
from hf_mabprune.errors import outside, printable, without_credentials_in
from hf_mabprune.evaluation.figures import (
    STRICT,
    Count,
    Layout,
    Length,
    ModelFigures,
    Number,
    Options,
    PlaceFigures,
    PromiseFigures,
    RandomFigures,
    SearchFigures,
    SizeFigures,
    Target,
    TargetFigures,
    Text,
    VocabularyFigures,
)
from hf_mabprune.evaluation.terminal_table import terminal_table

PACKAGES = ("hf_mabprune", "torch", "transformers", "datasets", "accelerate", "evaluate", "safetensors")


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
        vocabulary: What went of the vocabulary before the search; None where all tokens stay. Then `before` has the
            parameters and MACs of the model as it came, and the quality and latency of that with fewer tokens, which
            all else is compared with.
        reached: What the target came to, where it is of bytes, memory or time.
        promise: What the run promises of the pruned model; None where it was not asked to.
        sizes: All sizes that were cut from the search, this one among them.
        reload: `max_logit_difference` between the model in memory and the checkpoint read back.
        places: What came of trying the checkpoint where it may be put to use (`places`), for the card.
        certified_on: Split that the bounds of the pruned model are computed on.
        dense_sha256: Of the dense model's weights (`runtime.hashes`); empty where a run did not say it.
        calibration_sha256, test_sha256: Of the calibration and the test batches, in the same way.
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
    vocabulary: VocabularyFigures | None = None
    reached: TargetFigures | None = None
    promise: PromiseFigures | None = None
    alone: dict[Text, ModelFigures] = field(default_factory=dict)
    sizes: list[SizeFigures] = field(default_factory=list)
    reload: dict[Text, Number] = field(default_factory=dict)
    places: list[PlaceFigures] = field(default_factory=list)
    warnings: list[Text] = field(default_factory=list)
    certified_on: Literal["test", "certification"] = "test"
    dense_sha256: Text = ""
    calibration_sha256: Text = ""
    test_sha256: Text = ""
    versions: dict[Text, Text] = field(default_factory=lambda: installed_versions())

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps(without_nan(without_credentials_in(asdict(self))), indent=2, allow_nan=False)

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
        return name_of(self.target)

    def in_short(self) -> SizeFigures:
        """The row of this size in a table of sizes."""
        metric = self.main_metric
        return SizeFigures(
            name=self.size_name,
            target=self.target,
            layout=self.layout,
            parameters=self.after.parameters,
            macs=self.after.macs,
            metric=self.after.metrics[metric],
            interval=self.after.intervals[metric],
            random=fmean(draw.figures.metrics[metric] for draw in self.random) if self.random else None,
            latency_ms=self.after.latency_ms,
            speedup=self.speedup,
        )

    @property
    def speedup(self) -> float | None:
        """Latency of the dense model over that of the pruned one, measured in turns; None where it was not."""
        slow, fast = self.before.latency_ms, self.after.latency_ms
        return slow / fast if slow and fast else None

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
        """What holds with 95% confidence on data like a split, in a sentence; empty where nothing is known."""
        after = self.after
        said = []
        if after.kl_bound is not None:
            said.append(f"mean KL (each example's clipped at 1 nat) at most {after.kl_bound:.3g}")
        if after.changed_bound is not None:
            seen = f" ({after.changed:.1%} were)" if self.certified_on == "test" else ""
            said.append(f"at most {after.changed_bound:.1%} of answers changed{seen}")
        return f"with 95% confidence on data like the {self.certified_on} split: {', '.join(said)}" if said else ""

    def better_than_draws(self) -> tuple[int, int]:
        """Counts the random draws whose main metric is worse, and of them those of which the 95% interval of the
        difference says so."""
        sign, name = 1 if self.greater_is_better else -1, self.main_metric
        draws = [draw.figures for draw in self.random]
        alone = [(self.after.metrics[name] - figures.metrics[name], math.nan, math.nan) for figures in draws]
        found = [figures.behind or value for figures, value in zip(draws, alone, strict=True)]
        return _above_zero([(sign * value, sign * low, sign * high) for value, low, high in found])

    def against_random(self) -> str:
        """How many of the random draws the pruned model beats, and how many beyond doubt; empty where none was
        compared in pairs."""
        closer = [draw.figures.kl_above for draw in self.random if draw.figures.kl_above]
        if not closer:
            return ""
        some = "1 random draw" if len(closer) == 1 else f"{len(closer)} random draws"
        won = "{} ({} by more than the 95% interval)"
        return (
            f"of {some}, on the same examples, {printable(self.main_metric)} is better than "
            f"{won.format(*self.better_than_draws())}, KL lower than {won.format(*_above_zero(closer))}"
        )

    def table(self) -> str:
        """before | after | random control, as text for a terminal."""
        rows = {"before": self.before, "after": self.after}
        return terminal_table(self.main_metric, rows | self.controls())

    def controls(self) -> dict[str, ModelFigures]:
        """What else was made of the same size: criteria that chose alone, and random draws."""
        alone = {f"{name} alone": figures for name, figures in self.alone.items()}
        return alone | {f"random {draw.seed}": draw.figures for draw in self.random}


def _above_zero(differences: Sequence[tuple[float, float, float]]) -> tuple[int, int]:
    """Counts differences that are positive, and those whose interval is; each is its value and two bounds."""
    return sum(value > 0 for value, *_ in differences), sum(min(bounds) > 0 for _, *bounds in differences)


def figures_table(main_metric: str, figures: ModelFigures) -> str:
    """One model, as text for a terminal."""
    return terminal_table(main_metric, {"": figures})


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def without_nan(value: Any) -> Any:
    """Puts None in the place of numbers that JSON has no words for."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
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
