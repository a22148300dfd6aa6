"""What got worse, and for whom: the test examples by class, by length and by slices of the data, dense against pruned.

Symbols: N examples of the test split; n of them in a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Names = NDArray[np.object_]
MOST_GROUPS = 12  # of one kind: the largest; the others are left out
LENGTHS = 4  # groups of as many examples each, by length
CORRECTION = "Benjamini-Hochberg"
LEVEL = 0.05  # of the corrected tests: the part of groups marked that are expected to be marked by chance


@dataclass(frozen=True)
class Measure:
    """A number an example has of either model that says how good its answer is.

    Attributes:
        name: What it is, in words.
        greater_is_better: Its direction.
        dense: Of the dense model, [N].
        pruned: Of the pruned model, [N].
    """

    name: str
    greater_is_better: bool
    dense: Floats
    pruned: Floats

    @property
    def lost(self) -> Floats:
        """By how much the pruned model is worse, [N]."""
        return self.dense - self.pruned if self.greater_is_better else self.pruned - self.dense

    @property
    def of_hits(self) -> bool:
        """Whether each answer is right or wrong."""
        return bool(np.isin([self.dense, self.pruned], (0.0, 1.0)).all())


@dataclass(frozen=True)
class Group:
    """Some of the test examples.

    Attributes:
        kind: What makes them a group: "class", "length", or a column.
        name: Which of that kind they are.
        examples: How many, n.
        dense: Mean of the measure, dense model.
        pruned: Mean of the measure, pruned model.
        probability: One-sided p-value of "the pruned model is no worse here", from the n pairs.
        corrected: The same, corrected for the number of groups that were tested together.
    """

    kind: str
    name: str
    examples: int
    dense: float
    pruned: float
    probability: float
    corrected: float

    @property
    def worse(self) -> bool:
        """Whether the pruned model is shown to be worse here."""
        return self.corrected <= LEVEL


def measure_of(examples: pd.DataFrame, loss_name: str, by_loss: bool) -> Measure:
    """Picks the measure of a task: ranks, the overlap of answers, hits, or else the loss; where the data do not say
    what is right, the divergence from the dense model.

    Args:
        examples: Table of `examples_table`.
        loss_name: What the loss is.
        by_loss: Whether the loss says more than hits do, as of tokens.
    """

    def values(name: str) -> tuple[Floats, Floats]:
        dense, pruned = (examples[f"{model}_{name}"].to_numpy(dtype=float) for model in ("dense", "pruned"))
        return dense, pruned

    if "dense_rank" in examples:
        dense, pruned = values("rank")
        return Measure("reciprocal rank", True, 1 / dense, 1 / pruned)
    if "dense_overlap" in examples:
        return Measure("word F1", True, *values("overlap"))
    if "dense_correct" in examples and not by_loss:
        return Measure("accuracy", True, *values("correct"))
    if "dense_loss" in examples:
        return Measure(f"loss ({loss_name})", False, *values("loss"))
    kl = examples["kl"].to_numpy(dtype=float)
    return Measure("distance from the dense model", False, np.zeros_like(kl), kl)


def groups_of(
    examples: pd.DataFrame, measure: Measure, classes: Sequence[str] | None, slices: Mapping[str, Sequence[str]]
) -> list[Group]:
    """Compares the models in every group, and corrects the tests for all of them together.

    Args:
        examples: Table of `examples_table`, [N rows].
        measure: Of those examples.
        classes: Names of the classes where `target` is one; None where it is not.
        slices: Column of the data -> its value in each example, [N].
    """
    kinds: dict[str, tuple[Names, Sequence[str]]] = {}
    if classes is not None and "target" in examples:
        kinds["class"] = np.array(classes, dtype=object)[examples["target"].to_numpy(dtype=int)], classes
    if examples["tokens"].nunique() > 1:
        kinds["length"] = by_length(examples["tokens"])
    for column, values in slices.items():
        kinds[column] = np.array(values, dtype=object), sorted(set(values))
    found = [
        compared(kind, name, measure, names == name)
        for kind, (names, order) in kinds.items()
        for name in _largest(names, order)
    ]
    return corrected(found)


def corrected(groups: Sequence[Group]) -> list[Group]:
    """Corrects the p-values of groups that are tested together, so that of those at or below a level no more than that
    part is expected to be there by chance.

    Source: Benjamini & Hochberg 1995.
    """
    if not groups:
        return []
    together = stats.false_discovery_control([group.probability for group in groups], method="bh")
    return [replace(group, corrected=float(value)) for group, value in zip(groups, together, strict=True)]


def by_length(tokens: "pd.Series[int]") -> tuple[Names, Sequence[str]]:
    """Groups examples by their length: up to four of about as many examples.

    Returns:
        The name of the group of each, [N], and all names, short ones first.
    """
    groups = pd.qcut(tokens, LENGTHS, labels=False, duplicates="drop")
    bounds = tokens.groupby(groups).agg(["min", "max"])
    names = [
        f"{low:,} tokens" if low == high else f"{low:,} to {high:,} tokens"
        for low, high in zip(bounds["min"], bounds["max"], strict=True)
    ]
    numbers = np.searchsorted(bounds["max"].to_numpy(), tokens.to_numpy())
    return np.array(names, dtype=object)[numbers], names


def worse_probability(lost: Floats, of_hits: bool) -> float:
    """Tests pairs for "no worse": the p-value, one-sided, under which losing and gaining as much are as likely.

    Args:
        lost: By how much the second of each pair is worse, [n]; NaN is left out.
        of_hits: Whether that is -1, 0 or 1: then the exact test of McNemar 1947, else that of Wilcoxon 1945.
    """
    moved = lost[np.isfinite(lost) & (lost != 0)]
    if not len(moved):
        return 1.0
    if of_hits:
        return float(stats.binomtest(int((moved > 0).sum()), len(moved), alternative="greater").pvalue)
    return float(stats.wilcoxon(moved, alternative="greater").pvalue)


def compared(kind: str, name: str, measure: Measure, inside: NDArray[np.bool_]) -> Group:
    """Compares the models on some examples, [N] bool; the test is that of this group by itself."""
    dense, pruned = (float(np.mean(values[inside])) for values in (measure.dense, measure.pruned))
    probability = worse_probability(measure.lost[inside], measure.of_hits)
    return Group(kind, name, int(inside.sum()), dense, pruned, probability, probability)


def _largest(names: Names, order: Sequence[str]) -> list[str]:
    """Lists the groups that have examples, in their order; of many the largest."""
    counts = {name: int((names == name).sum()) for name in order}
    kept = sorted(filter(counts.get, order), key=lambda name: -counts[name])[:MOST_GROUPS]
    return [name for name in order if name in kept]
