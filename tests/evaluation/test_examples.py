"""The table of examples, of every task."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from hf_mabprune.artifacts.page_examples import Told, changed_examples, compared_groups
from hf_mabprune.evaluation.examples import check_table, examples_table
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of
from hf_mabprune.tasks.token_task import TokenTask
from tests.artifacts.reports import make_arms, make_report
from tests.tasks.tiny_tasks import CASES


def measured(name: str) -> tuple[Task, pd.DataFrame, Evaluation, Evaluation]:
    """A tiny model of a task beside a copy of it that noise has changed: the task, the table, and both."""
    task, model, dataset = CASES[name].build()
    batches = batches_of(task, task.encode(dataset), 3, by_length=True)
    dense = evaluate(forward_of(model, task), task, batches, Accelerator(cpu=True), intervals=False)
    record = [task.readout(model, batch) for batch in batches]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * torch.randn(weights.shape, generator=generator)
    plain = forward_of(model, task)
    pruned = evaluate(plain, task, batches, Accelerator(cpu=True), lambda number, _: record[number], intervals=False)
    return task, examples_table(task, batches, dense, pruned), dense, pruned


@pytest.mark.parametrize("name", CASES)
def test_of_every_task_both_answers_are_kept_and_told(name: str, tmp_path: Path) -> None:
    task, table, dense, pruned = measured(name)
    place = tmp_path / "examples.parquet"
    table.to_parquet(place)
    table = pd.read_parquet(place)
    check_table(table, place)
    assert len(table) == len(pruned.kl) and np.array_equal(table["kl"], pruned.kl)
    assert (table["tokens"] > 0).all() == isinstance(task, TokenTask)
    if task.predicts_classes and task.keeps_predictions:
        whole = (pruned.scores.predicted != dense.scores.predicted).sum()
        answered = table["changed"].fillna(0) * pruned.scores.answers
        assert answered.sum() == pytest.approx(whole)
    else:
        assert table["changed"].isna().all()
    told = Told(replace(make_report(), task=name), make_arms(), "", table, task, most=2)
    groups, changed = compared_groups(told), changed_examples(told)
    assert groups is not None and groups["whole"].examples == len(table)
    assert changed is not None and len(changed["shown"]) == min(2, changed["count"])


def test_what_is_no_such_table_is_refused(tmp_path: Path) -> None:
    for table in (pd.DataFrame({"tokens": [1]}), pd.DataFrame({"tokens": [1], "kl": ["x"], "changed": [0.0]})):
        with pytest.raises(ValueError, match=r"x\.parquet is not of this version"):
            check_table(table, Path("x.parquet"))
