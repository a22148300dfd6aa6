"""The figures of a report: one model measured, a draw, a search, a size; each field checked where a report is read."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from hf_mabprune.config import in_words
from hf_mabprune.search.result import ROUND
from hf_mabprune.states import read_state

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
Amount = Share | Annotated[str, Field(pattern=r"^[\w. ]+$", max_length=40)]
Target = dict[Annotated[str, Field(pattern=r"^[a-z_]+$")], Amount]  # it names folders
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
        kl_bound: With 95% confidence, the mean of KL clipped at 1 nat is at most this on data like the test split; of
            the pruned model, like the split that `Report.certified_on` names.
        changed: Part of an example's answers that are another class than the dense model's, mean over the test split;
            of the test examples, where each has one answer.
        changed_bound: With 95% confidence, that part is at most this on such data.
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
class TargetFigures:
    """What a target of bytes, memory or time came to.

    Attributes:
        of: What it is of, and under which conditions, in words.
        unit: Of what follows: `B` or `ms`.
        before: What the dense model has.
        asked: What may be left.
        predicted: What the selection leaves, as it was known before the model was cut.
        achieved: What the pruned model has, measured; None until its files are written, where they decide.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    of: Text
    unit: Literal["B", "ms"]
    before: Positive
    asked: Positive
    predicted: Positive
    achieved: Positive | None = None

    def __str__(self) -> str:
        names = ("asked", "predicted", "achieved")
        said = [(name, value) for name in names if (value := getattr(self, name)) is not None]
        amounts = ", ".join(f"{in_words(value, self.unit)} {name}" for name, value in said)
        return f"{self.of}: {amounts}, of {in_words(self.before, self.unit)}"


@dataclass(frozen=True)
class PromiseFigures:
    """What a run promises of a pruned model, and the tests that it took, in their order.

    Attributes:
        of: What is promised: changed, kl or metric.
        most: How much of it is lost at most, with `confidence`, on data like the certification split.
        clip: Nats that the divergence of an example is clipped at.
        examples: Of that split.
        tests: Name of the size, what it lost on the split, and whether the promise holds; the first that does not
            ended the tests.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    of: Literal["changed", "kl", "metric"]
    most: Positive
    clip: Positive
    confidence: Share
    examples: Count
    tests: list[tuple[Text, Number, bool]]

    def __str__(self) -> str:
        what = {
            "changed": f"at most {self.most:.3g} of answers changed",
            "kl": f"mean KL (each example's clipped at {self.clip:g}) at most {self.most:.3g}",
            "metric": f"at most {self.most:.3g} of accuracy lost",
        }[self.of]
        seen = ", ".join(f"{name} {lost:.3g} {'holds' if held else 'not shown'}" for name, lost, held in self.tests)
        return (
            f"with {self.confidence:.0%} confidence on data like the certification split, {what}; tested on "
            f"{self.examples:,} examples, in this order: {seen}"
        )


@dataclass(frozen=True)
class PlaceFigures:
    """What came of trying a checkpoint in one place (`places`).

    Attributes:
        recipe: What a user types there, for a checkpoint in the folder DIR.
        outcome: "same" where the difference is rounding, "other" where it is more; "failed" where an error came of it;
            "cannot" where that never works; "untried" where something is not here.
        note: Why not; or what else was measured.
        difference: Largest absolute difference from what plain Auto classes give in float32; None where not tried.
        of: What is compared.
        seconds: From loading to the comparison.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    place: Text
    recipe: Text
    outcome: Literal["same", "other", "failed", "cannot", "untried"]
    note: Text = ""
    difference: Number | None = None
    of: Text = "logits"
    seconds: Positive | None = None

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.outcome}: {self.note}"
        counted = f"{self.difference:.2g} ({self.of})"
        return f"{counted}, {self.note}" if self.note else counted


@dataclass(frozen=True)
class VocabularyFigures:
    """What a vocabulary was cut to before the search, and what that changed by itself.

    Attributes:
        corpus: What decided which tokens stay.
        tokens: Tokens before and after.
        parameters: Of the dense model, before and after.
        measure: What `quality` is: bits per byte of the text that is predicted, or the main metric.
        quality: Of the dense model on the test split, before and after.
        kl: Mean divergence of the outputs from those before, in nats; None where tokens are predicted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    corpus: Text
    tokens: tuple[Count, Count]
    parameters: tuple[Count, Count]
    measure: Text
    quality: tuple[Number, Number]
    kl: Number | None = None

    def __str__(self) -> str:
        (tokens, left), (parameters, fewer), (before, after) = self.tokens, self.parameters, self.quality
        said = [
            f"{left:,} of {tokens:,} tokens stay, those {self.corpus}",
            f"parameters from {parameters:,} to {fewer:,}",
            f"{self.measure} on test from {before:.4f} to {after:.4f}",
        ]
        return "; ".join([*said, *([] if self.kl is None else [f"KL {self.kl:.2g}"])])


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
    random: Number | None  # mean of the main metric over the random draws of that size, where there were any
    latency_ms: Positive | None
    speedup: Positive | None  # latency of the dense model over this one's, measured in turns
