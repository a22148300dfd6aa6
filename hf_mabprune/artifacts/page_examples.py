"""What a page tells of single examples: for whom a model got worse, and which answers are others.

Symbols: N examples of the test split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hf_mabprune.artifacts.run_data import RunData, shown
from hf_mabprune.evaluation.examples import ANSWERS
from hf_mabprune.evaluation.groups import CORRECTION, LEVEL, Group, compared, groups_of, measure_of
from hf_mabprune.evaluation.report import Report
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.readout import NO_CLASS

LONGEST_CLASS = 60  # letters of the name of a class
MOST_CLASSES = 100_000  # more are no classes


@dataclass(frozen=True)
class Told:
    """One size of a run, and all that its page tells.

    Attributes:
        report: Its report.
        arms: Its table of arms.
        config_yaml: Its settings.
        examples: Its table of examples; None where the run stored none.
        task: Task of the run; None where its checkpoint does not say.
        data: The test data; None where they are not there.
        slices: Column of the data -> values, [N].
        most: Examples that are shown at most.
    """

    report: Report
    arms: pd.DataFrame
    config_yaml: str
    examples: pd.DataFrame | None = None
    task: Task | None = None
    data: RunData | None = None
    slices: Mapping[str, Sequence[str]] | None = None
    most: int = 0


def compared_groups(size: Told) -> dict[str, Any] | None:
    """Gives the table of groups; nothing where a run stored no examples."""
    if size.examples is None:
        return None
    kind = TASKS.get(size.report.task)
    measure = measure_of(size.examples, kind.loss_name, kind.predicts_tokens)
    found = groups_of(size.examples, measure, _classes(size), size.slices or {})
    by_kind: dict[str, list[Group]] = {}
    for group in found:
        by_kind.setdefault(group.kind, []).append(group)
    return {
        "measure": measure.name,
        "direction": "higher" if measure.greater_is_better else "lower",
        "test": "the exact test of McNemar" if measure.of_hits else "Wilcoxon's signed-rank test",
        "correction": CORRECTION,
        "level": f"{LEVEL:.0%}",
        "tested": len(found),
        "worse": sum(group.worse for group in found),
        "whole": compared("all", "all", measure, np.full(len(size.examples), True)),
        "kinds": by_kind,
    }


def _classes(size: Told) -> list[str] | None:
    """Names the classes that an example has one of; None where targets are no such classes."""
    examples = size.examples
    if examples is None or "target" not in examples or not pd.api.types.is_integer_dtype(examples["target"]):
        return None
    answers = examples[list(ANSWERS)].to_numpy()
    highest = int(answers.max()) + 1
    if answers.min() < NO_CLASS or highest > MOST_CLASSES or examples["target"].min() < 0:
        return None
    names = size.task.class_names if size.task and size.task.answer_classes == size.task.classes else []
    names = [shown(name, LONGEST_CLASS) for name in names]
    return names if len(set(names)) == len(names) >= highest else [str(number) for number in range(highest)]


def changed_examples(size: Told) -> dict[str, Any] | None:
    """Gives the examples whose answers changed, the largest changes first; where answers are no classes, those that
    moved most."""
    if size.examples is None:
        return None
    examples, classes = size.examples, _classes(size)
    known = bool(examples["changed"].notna().any())
    moved = examples[examples["changed"] > 0] if known else examples
    order = np.argsort(-moved["kl"].to_numpy(), kind="stable")[: size.most]
    return {
        "known": known,
        "count": len(moved),
        "of": len(examples),
        "most": size.most,
        "lost": _turned(examples, 1),
        "won": _turned(examples, -1),
        "shown": [_example(size, int(number), examples.iloc[number], classes) for number in moved.index[order]],
    }


def _turned(examples: pd.DataFrame, sign: int) -> int | None:
    """Counts right answers that became wrong (1), or wrong ones that became right (-1); None where there are none."""
    if "target" not in examples or "dense_correct" not in examples:
        return None
    return int((sign * (examples["dense_correct"] - examples["pruned_correct"]) > 0).sum())


def _example(size: Told, number: int, row: "pd.Series[Any]", classes: list[str] | None) -> dict[str, Any]:
    """Gives what is shown of one example."""
    facts: list[tuple[str, str]] = []
    if "target" in row:
        answers = [("right", row["target"]), ("dense", row["dense"]), ("pruned", row["pruned"])]
        facts += [(name, _answer(value, classes)) for name, value in answers]
    elif row["changed"] > 0:
        facts.append(("answers changed", f"{row['changed']:.0%}"))
    if "dense_overlap" in row:
        facts.append(("word F1", f"{row['dense_overlap']:.2f} to {row['pruned_overlap']:.2f}"))
    if "dense_loss" in row and (TASKS.get(size.report.task).predicts_tokens or "target" not in row):
        facts.append(("loss", f"{row['dense_loss']:.3g} to {row['pruned_loss']:.3g}"))
    facts.append(("KL", f"{row['kl']:.3g}"))
    turned = float(row["dense_correct"] - row["pruned_correct"]) if classes else 0.0
    data = size.data
    return {
        "place": data.place(number) if data else "",
        "texts": data.texts(number) if data else [],
        "facts": facts,
        "turned": {1.0: "lost", -1.0: "won"}.get(turned, ""),
    }


def _answer(value: Any, classes: list[str] | None) -> str:
    if classes is None:
        return f"{value:.3g}"
    return classes[int(value)] if 0 <= value < len(classes) else "none"
