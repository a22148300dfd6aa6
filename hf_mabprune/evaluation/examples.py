"""What both models said of each test example, for a closer look than means allow: `mabprune/examples.parquet`.

Numbers alone: no text, image or other input is kept, and the file stays where the run wrote it, for answers say
something of the data that they answer.

Symbols: N examples of the test split, in the order of its batches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_mabprune.errors import outside
from hf_mabprune.evaluation.quality import Evaluation, changed_shares
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import IDS, Batch
from hf_mabprune.tasks.scores import Scores

COLUMNS = {"tokens", "kl", "changed"}  # that are always there
ANSWERS = ("target", "dense", "pruned")  # that are there together, or not at all


def read_examples(place: Path) -> pd.DataFrame | None:
    """Reads a table of `examples_table` back; None where there is none.

    Raises:
        ValueError: If something else is there.
    """
    if not place.exists():
        return None
    with outside(f"{place} cannot be read", "remove it to do without"):
        examples = pd.read_parquet(place)
    there = set(examples.columns)
    measures = {name.partition("_")[2] for name in there if "_" in str(name)}
    pairs = {f"{model}_{measure}" for model in ("dense", "pruned") for measure in measures}
    answers = set(ANSWERS) & there
    whole = there == COLUMNS | pairs | answers and answers in (set(), set(ANSWERS)) and len(examples) > 0
    if not whole or not all(map(pd.api.types.is_numeric_dtype, examples.dtypes)) or examples["tokens"].hasnans:
        raise ValueError(f"{place} is not of this version of hf_mabprune: remove it to do without")
    return examples


def examples_table(task: Task, batches: Sequence[Batch], dense: Evaluation, pruned: Evaluation) -> pd.DataFrame:
    """Lays out what two models said of the same examples.

    Args:
        task: Task of both.
        batches: The test split.
        dense: The dense model on it.
        pruned: The pruned model on it.

    Returns:
        [N rows]: `tokens`, the length of the input, 0 where it has none; `kl`, the divergence of the pruned model's
        outputs from the dense model's; `changed`, the part of the answers that are other classes, NaN where answers
        are no classes or are not kept; what `_quality` gives, as `dense_loss`, `pruned_loss`, and so on; and, where
        each example has one answer, `target`, `dense` and `pruned`.
    """
    count = len(pruned.kl)
    lengths = [] if task.batches_are_large else [_lengths(batch) for batch in batches]  # each is made when it is read
    columns: dict[str, NDArray[Any]] = {
        "tokens": np.concatenate(lengths) if lengths else np.zeros(count, dtype=np.int64),
        "kl": pruned.kl,
        "changed": changed_shares(pruned.scores, dense.scores) if task.predicts_classes else np.full(count, np.nan),
    }
    for name, evaluation in {"dense": dense, "pruned": pruned}.items():
        columns |= {f"{name}_{measure}": values for measure, values in _quality(task, evaluation.scores).items()}
    if (dense.scores.answers == 1).all() and dense.scores.predicted.ndim == 1:
        answers = dense.scores.reference, dense.scores.predicted, pruned.scores.predicted
        columns |= dict(zip(ANSWERS, answers, strict=True))
    return pd.DataFrame(columns)


def _quality(task: Task, scores: Scores) -> dict[str, NDArray[Any]]:
    """Gives what says how good the answer to each example is, measure -> [N]: its loss, where the data say what is
    right; the part of its answers that are right, where these are classes; and what the task has besides."""
    found = {"loss": scores.losses} if task.has_loss else {}
    found |= {"correct": scores.correct} if task.predicts_classes else {}
    further = {"overlap": scores.overlap, "rank": scores.ranks}
    return found | {name: values for name, values in further.items() if len(values)}


def _lengths(batch: Batch) -> NDArray[np.int64]:
    """Counts the tokens of each example of a batch, padding left out, [B]; of several sequences, of the longest."""
    mask = batch.get("attention_mask")
    if mask is not None:
        lengths = mask.sum(-1).reshape(len(mask), -1).amax(1)
        return np.asarray(lengths.cpu().numpy(), dtype=np.int64)
    return np.full(batch.examples, batch.length if IDS[0] in batch else 0, dtype=np.int64)
