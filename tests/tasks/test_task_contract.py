"""What every registered task must do, on a tiny random model."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.architectures.positions import NO_LIMIT, max_positions
from hf_mabprune.checkpoints.processors import kind_of_processor
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.lookup import build_task, task_for_model
from hf_mabprune.tasks.sampling import batches_of, encode_sample
from hf_mabprune.tasks.scores import Scores
from hf_mabprune.tasks.token_task import TokenTask
from tests.tasks.tiny_tasks import CASES, make_processor, make_tokenizer, task_of

Bound = tuple[Task, PreTrainedModel, Dataset]
every_task = pytest.mark.parametrize("case", TASKS.names(), indirect=True)
TOKEN_TASKS = [name for name in TASKS.names() if issubclass(TASKS.get(name), TokenTask)]
every_token_task = pytest.mark.parametrize("case", TOKEN_TASKS, indirect=True)


def name_of(task: Task) -> str:
    return next(name for name in TASKS.names() if TASKS.get(name) is type(task))


@every_task
def test_the_models_class_leads_to_the_task(case: Bound) -> None:
    task, model, _ = case
    name = type(model).__name__
    model.config.architectures = [name]
    for found in (task_for_model(name, model.config), task_for_model(model.config)):
        assert (found == name_of(task)) == (not task.asked_for_by_name)
        assert name.endswith(TASKS.get(found).heads)


@every_task
def test_losses_are_those_worked_out_by_hand(case: Bound) -> None:
    task, model, dataset = case
    by_hand = CASES[name_of(task)].losses
    for batch in batches_of(task, task.encode(dataset), 3):
        with torch.no_grad():
            readout = task.readout(model, batch)
        assert readout.losses().dtype == torch.float64
        assert readout.losses().tolist() == pytest.approx(by_hand(readout.outputs, readout.targets), abs=1e-12)


@pytest.mark.parametrize("case", [name for name in TASKS.names() if TASKS.get(name).has_loss], indirect=True)
def test_total_loss_is_the_models_own(case: Bound) -> None:
    task, model, dataset = case
    (batch,) = batches_of(task, task.encode(dataset), 100)
    with torch.no_grad():
        readout = task.readout(model, batch)
        own = CASES[name_of(task)].own_loss(task, model, batch)
    mean = (readout.losses() * readout.positions()).sum() / readout.positions().sum()
    assert float(mean) == pytest.approx(own, abs=1e-6)


@every_task
def test_labels_are_kept_from_the_model(case: Bound) -> None:
    task, _, dataset = case
    (batch,) = batches_of(task, task.encode(dataset), 100)
    assert "labels" in batch
    assert "labels" not in task.inputs(batch)


@every_task
def test_scores_do_not_depend_on_the_batch_size(case: Bound) -> None:
    task, model, dataset = case
    encoded = task.encode(dataset)

    def scores(size: int) -> Scores:
        with torch.no_grad():
            return Scores.concatenate([task.readout(model, b).scores() for b in batches_of(task, encoded, size)])

    alone, together = scores(1), scores(100)
    assert len(alone.losses) == len(encoded)
    np.testing.assert_allclose(alone.losses, together.losses, atol=1e-6)
    for name in ("positions", "answers", "predicted", "reference"):
        np.testing.assert_allclose(getattr(alone, name), getattr(together, name), rtol=0, atol=1e-6)


@every_task
def test_metrics_include_the_main_one(case: Bound) -> None:
    task, model, dataset = case
    (batch,) = batches_of(task, task.encode(dataset), 100)
    with torch.no_grad():
        metrics = task.compute_metrics(task.readout(model, batch).scores())
    assert task.main_metric == task.default_metrics[0]
    assert set(metrics) == set(task.default_metrics)
    assert all(np.isfinite(value) for value in metrics.values())


@every_task
def test_the_main_metric_points_the_right_way(case: Bound) -> None:
    """A model that is right everywhere scores better than one that is wrong everywhere."""
    task, _, _ = case
    count = np.arange(4) % 2
    ones = np.ones(4, dtype=np.int64)
    right = Scores(np.full(4, 0.1), ones, count, count, np.ones(4), ones, np.ones(4), np.ones(4))
    wrong = Scores(np.full(4, 3.0), ones, 1 - count, count, np.zeros(4), ones, np.zeros(4), np.full(4, 3.0))
    better, worse = (task.compute_metrics(scores)[task.main_metric] for scores in (right, wrong))
    assert (better > worse) == task.greater_is_better


@every_task
def test_a_sample_is_the_same_for_the_same_seed(case: Bound) -> None:
    task, _, dataset = case
    samples = [list(encode_sample(task, dataset, 3, seed)) for seed in (0, 0, 1, 2, 3)]
    assert samples[0] == samples[1]
    assert any(sample != samples[0] for sample in samples[2:])
    assert all(len(sample) == 3 for sample in samples)


@every_task
def test_empty_data_is_refused(case: Bound) -> None:
    task, _, dataset = case
    with pytest.raises(ValueError, match="split 'validation' must not be empty"):
        task.check(dataset.select([]), "validation")


@every_task
def test_a_missing_column_names_those_there_are(case: Bound) -> None:
    task, _, dataset = case
    column, role = dataset.column_names[0], task.roles[0]
    with pytest.raises(ValueError, match=r"split 'test' has none of the usual columns.*Its columns:.*strange"):
        task.check(dataset.rename_column(column, "strange"), "test")
    task.columns = {role: "strang"}
    with pytest.raises(ValueError, match=rf"no column 'strang' \(role {role}\). Did you mean 'strange'"):
        task.check(dataset.rename_column(column, "strange"), "test")
    task.columns = {role: "strange"}
    task.check(dataset.rename_column(column, "strange"), "test")


@every_task
def test_a_row_without_a_value_is_refused(case: Bound) -> None:
    task, _, dataset = case
    column = dataset.column_names[0]
    rows = dataset.to_dict()
    rows[column][1] = None
    with pytest.raises(ValueError, match=f"split 'train', column '{column}': no value in row 1"):
        task.check(Dataset.from_dict(rows, dataset.features), "train")


@every_token_task
def test_tokens_beyond_the_vocabulary_are_refused(case: Bound) -> None:
    task, model, dataset = case
    model.config.vocab_size = 9
    with pytest.raises(ValueError, match=r"token ids must be below 9, .* got 15"):
        task.encode(dataset)


@every_task
def test_settings_that_cannot_work_are_refused_before_any_data(case: Bound) -> None:
    task, model, _ = case
    again = {"processor": task.processor, "model_config": model.config}
    with pytest.raises(ValueError, match=rf"no column role '{task.roles[0]}s'\. Did you mean '{task.roles[0]}'"):
        type(task)(**again, columns={f"{task.roles[0]}s": "x"})


@every_token_task
def test_no_sequence_is_longer_than_the_model_can_take(case: Bound) -> None:
    task, model, _ = case
    again = {"processor": task.processor, "model_config": model.config}
    if max_positions(model.config) == NO_LIMIT:
        assert type(task)(**again, max_length=10**6).length == 10**6
        assert type(task)(**again).length == task.default_length
        return
    with pytest.raises(ValueError, match="max_length must be at most 32, the model's positions, got 33"):
        type(task)(**again, max_length=33)
    assert type(task)(**again).length == 32


@every_task
def test_a_processor_of_another_kind_is_refused(case: Bound) -> None:
    task, model, _ = case
    needed = kind_of_processor(str(task.processor_class))
    other = "image" if needed == "tokenizer" else "pair"
    with pytest.raises(ValueError, match=rf"task '{name_of(task)}' needs the model's {needed}, got .*(Vi)?T"):
        task_of(model, make_processor(other), type=name_of(task))


@pytest.mark.parametrize(
    "case", [name for name in TASKS.names() if not TASKS.get(name).predicts_tokens], indirect=True
)
@pytest.mark.parametrize("setting", ["calibration_positions", "evaluation_positions"])
def test_a_number_of_tokens_is_refused_where_none_are_predicted(case: Bound, setting: str) -> None:
    task, model, _ = case
    with pytest.raises(ValueError, match=rf"task\.{setting} means nothing to task '{name_of(task)}', got 4; leave it"):
        task_of(model, task.processor, type=name_of(task), **{setting: 4})


@every_task
def test_the_sample_text_is_read_or_refused(case: Bound) -> None:
    task, model, _ = case
    config = TaskConfig(type=name_of(task))
    if not task.takes_plain_text:
        with pytest.raises(ValueError, match=r"needs data of its own, named in task.dataset; .* is for .*causal_lm"):
            build_task(config, task.processor, model.config, type(model).__name__)
        return
    task.columns = {}
    rows = load_splits(config)["test"]
    task.check(rows, "test")
    assert len(encode_sample(task, rows, 20, seed=0)) == 20


@every_task
def test_another_head_is_refused(case: Bound) -> None:
    task, model, _ = case
    config = TaskConfig(type=name_of(task), dataset=DatasetConfig(path="in-memory"))
    with pytest.raises(ValueError, match="got BertForPreTraining: its head would be untrained"):
        build_task(config, make_tokenizer("pair"), model.config, "BertForPreTraining")


def test_an_unknown_head_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"BertForPreTraining.*causal_lm for \*ForCausalLM.*\*ForSequenceClassification"
    ):
        task_for_model("BertForPreTraining")


@pytest.mark.parametrize(("model", "task"), [("MarianMTModel", "seq2seq"), ("GPT2LMHeadModel", "causal_lm")])
def test_the_longest_end_of_a_name_says_what_a_model_is_for(model: str, task: str) -> None:
    assert task_for_model(model) == task
