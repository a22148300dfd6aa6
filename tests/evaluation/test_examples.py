"""The table of examples, of every task."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from hf_mabprune.artifacts import page_figures
from hf_mabprune.artifacts.page import page_of
from hf_mabprune.artifacts.page_examples import Told, changed_examples, compared_groups
from hf_mabprune.artifacts.run_data import RunData
from hf_mabprune.evaluation.examples import examples_table, read_examples
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of, length_order
from hf_mabprune.tasks.token_task import TokenTask
from tests.artifacts.reports import config, make_arms, make_report
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
def test_of_every_task_both_answers_are_kept_and_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, table, dense, pruned = measured(name)
    place = tmp_path / "examples.parquet"
    assert read_examples(place) is None
    table.to_parquet(place)
    assert table.equals(read_examples(place))
    assert len(table) == len(pruned.kl) and np.array_equal(table["kl"], pruned.kl)
    assert (table["tokens"] > 0).all() == isinstance(task, TokenTask)
    if task.predicts_classes and task.keeps_predictions:
        whole = (pruned.scores.predicted != dense.scores.predicted).sum()
        answered = table["changed"].fillna(0) * pruned.scores.answers
        assert answered.sum() == pytest.approx(whole)
    else:
        assert table["changed"].isna().all()
    told = Told(replace(make_report(), task=name), make_arms(), config(), table, task, data_of(name, task), most=2)
    groups, changed = compared_groups(told), changed_examples(told)
    assert groups is not None and groups["whole"].examples == len(table)
    assert changed is not None and len(changed["shown"]) == min(2, changed["count"])
    for example in changed["shown"]:
        assert bool(example["texts"]) == (name != "image_classification") and example["place"]
    for figure in ("effects", "course"):
        monkeypatch.setattr(page_figures, figure, lambda *_: [])
    assert f"The table shows the mean {groups['measure']} of each" in page_of([told])


def data_of(name: str, task: Task) -> RunData:
    rows = CASES[name].build()[2]
    encoded = task.encode(rows)
    drawn = task.draws_rows(rows)
    return RunData(task, rows if drawn else None, encoded, length_order(task, encoded), np.arange(len(rows)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": [1], "kl": [0.1]},
        {"tokens": [1], "kl": ["x"], "changed": [0.0]},
        {"tokens": [1], "kl": [0.1], "changed": [0.0], "dense_loss": [0.5]},
        {"tokens": [1], "kl": [0.1], "changed": [0.0], "target": [1]},
        {"tokens": [np.nan], "kl": [0.1], "changed": [0.0]},
        {"tokens": [], "kl": [], "changed": []},
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, wrong: dict[str, list[object]]) -> None:
    pd.DataFrame(wrong).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet is not of this version"):
        read_examples(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read"):
        read_examples(tmp_path / "x.parquet")
