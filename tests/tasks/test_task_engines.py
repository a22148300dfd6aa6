"""What every registered task must be to the engines: pulls, estimates, evaluation, the whole run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune import prune
from hf_mabprune.architectures.cost import count_macs
from hf_mabprune.arms import ArmTable
from hf_mabprune.effects.gradients import estimate
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.rewards import REWARDS
from hf_mabprune.evaluation.quality import evaluate, forward_of, masked_forward_of
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.batch import Batch, typical_example
from hf_mabprune.tasks.sampling import batches_of, split_by_length
from tests.problems import arms_of, pull_all, rounding, shrink, some_context
from tests.seeds import moved
from tests.tasks.tiny_tasks import CASES, make_processor, make_tokenizer

Bound = tuple[Task, PreTrainedModel, Dataset]
Problem = tuple[Task, PreTrainedModel, list[Batch], ArmTable]
every_task = pytest.mark.parametrize("case", TASKS.names(), indirect=True)
with_a_loss = pytest.mark.parametrize(
    "case", [name for name in TASKS.names() if TASKS.get(name).has_loss], indirect=True
)


@pytest.fixture
def problem(case: Bound) -> Problem:
    """Task, model with sizeable weights, three batches and all arms."""
    task, model, dataset = case
    torch.manual_seed(moved(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    encoded = task.encode(dataset)
    batches = batches_of(task, encoded.select([*range(len(encoded))] * 3), 4)[:3]
    return task, model, batches, arms_of(model, 8, [task.inputs(batch) for batch in batches])


@every_task
def test_replayed_pulls_equal_reference_pulls(problem: Problem) -> None:
    task, model, batches, arms = problem
    for reward in REWARDS.names():
        for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 10 * rounding(model))):
            model.to(dtype)
            slow = pull_all(ReferencePulls(model, arms, task, batches, reward), some_context(arms))
            replay = ReplayPulls(model, arms, task, batches, reward)
            fast = pull_all(replay, some_context(arms))
            np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=tolerance)
            if reward == "kl" or (reward != "accuracy" and task.has_loss):
                assert np.abs(slow).max() > 1e-4
        assert replay.arms_a_forward > 1


@every_task
def test_half_precision_products_keep_the_effects(problem: Problem) -> None:
    task, model, batches, arms = problem
    half = pull_all(ReplayPulls(model, arms, task, batches, products=torch.float16), some_context(arms))[:, 0]
    exact = pull_all(ReplayPulls(model.double(), arms, task, batches), some_context(arms))[:, 0]
    assert np.sqrt(np.square(half - exact).mean()) <= 0.01 * exact.std()
    assert np.abs(half - exact).max() <= 0.05 * exact.std()


@with_a_loss
def test_a_pull_is_the_masked_model_against_the_whole(problem: Problem) -> None:
    """Worked out from the model's outputs alone, one example at a time."""
    task, model, batches, arms = problem
    kept = np.ones(len(arms), dtype=bool)
    kept[2] = False
    forward, (batch, *_) = masked_forward_of(model, task, arms.kept_units(kept)), batches
    losses = CASES[next(name for name in TASKS.names() if TASKS.get(name) is type(task))].losses
    with torch.no_grad():
        readouts = task.readout(model, batch), forward(0, batch)
        whole, without = (losses(readout.outputs, readout.targets) for readout in readouts)
    reward = ReplayPulls(model, arms, task, batches, "loss").pull(np.array([2]), np.array([0]))[0, 0]
    assert reward == pytest.approx(np.mean(whole) - np.mean(without), abs=1e-5)


@every_task
@pytest.mark.parametrize("reward", ["kl", "loss", "squared"])
def test_estimates_are_the_limit_of_small_arms(problem: Problem, reward: str) -> None:
    """With all output projections scaled down, second-order terms vanish beside what is estimated."""
    task, model, batches, arms = problem
    if reward != "kl" and not task.has_loss:
        return
    model.double()
    shrink(model, 1e-3 if model.config.model_type != "vit" else 1e-4)  # whose embeddings are small, too
    dense = task.readout(model, batches[0])
    drawn = reward == "kl" and not dense.few_outputs()
    for kept in (np.ones(len(arms), dtype=bool), some_context(arms)):
        found, _ = estimate(model, arms, task, batches[0], reward, kept, dense, samples=400)
        pulls = ReferencePulls(model, arms, task, batches[:1], reward)
        pulls.set_context(kept)
        rows = np.flatnonzero(kept)
        exact = pulls.pull(rows, np.zeros(len(rows), dtype=int))[:, 0]
        tolerance = {"rtol": 0.15 if drawn else 2e-2, "atol": (5e-2 if drawn else 2e-3) * np.abs(exact).max()}
        np.testing.assert_allclose(found.mean(1).numpy()[rows], exact, **tolerance)
        assert np.abs(exact).max() > 0


@with_a_loss
def test_estimates_of_a_batch_are_those_of_its_examples(problem: Problem) -> None:
    task, model, batches, arms = problem
    model.double()
    dense, kept = task.readout(model, batches[0]), some_context(arms)
    together, _ = estimate(model, arms, task, batches[0], "squared", kept, dense)
    assert together.shape == (len(arms), len(batches[0]["labels"]))
    for row in range(len(batches[0]["labels"])):
        one = batches[0].rows(slice(row, row + 1))
        alone, _ = estimate(model, arms, task, one, "squared", kept, task.readout(model, one))
        torch.testing.assert_close(together[:, row], alone[:, 0], rtol=1e-6, atol=1e-10)


@every_task
def test_evaluation_reads_the_divergence_from_the_dense_model(problem: Problem) -> None:
    task, model, batches, arms = problem
    accelerator = Accelerator(cpu=True)
    same = evaluate(forward_of(model, task), task, batches, accelerator, forward_of(model, task), intervals=False)
    assert not same.kl.any()
    kept = some_context(arms)
    forward = masked_forward_of(model, task, arms.kept_units(kept))
    found = evaluate(forward, task, batches, accelerator, forward_of(model, task))
    assert (found.kl > 0).all()
    assert found.loss != same.loss
    low, high = found.intervals[task.main_metric]
    assert low <= found.metrics[task.main_metric] <= high
    pulls = ReplayPulls(model, arms, task, batches)
    assert float(pulls.observe(1, kept).kl.mean()) == pytest.approx(found.kl[4:8].mean(), rel=1e-4)


@every_task
def test_parts_of_a_batch_hold_all_of_it(problem: Problem) -> None:
    task, model, batches, _ = problem
    with torch.no_grad():
        whole = task.readout(model, batches[0]).losses()
        parts = torch.cat([task.readout(model, part).losses() for part in split_by_length(batches[0], parts=4)])
    torch.testing.assert_close(parts.sort().values, whole.sort().values, rtol=0, atol=1e-5)


@every_task
def test_macs_are_counted_over_one_sequence(problem: Problem) -> None:
    """Embeddings and heads apart: two layers of 4 D^2 + 2 or 3 D F a token, and the attention products.

    Patches of an image, and features of a table, go through a product of their own; a decoder reads the encoder by an
    attention more.
    """
    task, model, batches, _ = problem
    config, example, kind = model.config, task.inputs(typical_example(batches, 9)), model.config.model_type
    tokens = 2 * 2 + 1 if kind == "vit" else example["features"].shape[1] if "features" in example else 9
    keys = config.num_key_value_heads / config.num_attention_heads if kind == "llama" else 1
    layer = (2 + 2 * keys) * 16 * 16 + (3 if kind == "llama" else 2) * 16 * 24
    macs = 2 * (tokens * layer + 2 * tokens * tokens * 16)
    if kind == "llama":
        macs += tokens * 16 * 16
    elif kind == "t5":
        length = example["decoder_input_ids"].shape[1]
        macs += 2 * (length * layer + 2 * length * length * 16)
        macs += 2 * ((length + tokens) * 2 * 16 * 16 + 2 * length * tokens * 16) + length * 16 * config.vocab_size
    elif type(model).__name__.endswith("ForTokenClassification"):
        macs += tokens * 16 * model.classifier.out_features
    elif type(model).__name__.endswith("ForQuestionAnswering"):
        macs += tokens * 16 * 2
    elif type(model).__name__.endswith("ForMaskedLM"):
        macs += tokens * 16 * (16 + config.vocab_size)
    elif model.base_model is model:
        macs += 16 * 16
    else:
        macs += (4 * 48 * 16 if kind == "vit" else 16 * 16) + 16 * model.classifier.out_features
        macs += tokens * 16 if "features" in example else 0
    # Older versions of transformers make the angles of rotary positions by a product, which counts.
    assert count_macs(model, example) == pytest.approx(macs, rel=1e-3)


def splits_like(name: str, count: int) -> dict[str, Dataset]:
    """The rows of a case over and over, each a little different, no two splits with the same."""
    rows = CASES[name].rows
    return {split: rows_like(rows, count, at) for at, split in enumerate(("calibration", "validation", "test"))}


def rows_like(rows: dict[str, list[Any]], count: int, start: int = 0) -> Dataset:
    """Some rows over and over, each followed by another letter, or with another in the place of its first."""
    texts = next(column for column in rows if isinstance(rows[column][0], str) or column == "tokens")
    repeated = {column: [values[row % len(values)] for row in range(count)] for column, values in rows.items()}
    letters = ["abcdefghij"[(start + row) % 10] for row in range(count)]
    repeated[texts] = [
        f"{text} {letter}" if isinstance(text, str) else [letter, *text[1:]]
        for text, letter in zip(repeated[texts], letters, strict=True)
    ]
    return Dataset.from_dict(repeated)


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "name",
    [
        "answer",
        "masked_lm",
        "multi_label_classification",
        "multiple_choice",
        "question_answering",
        "regression",
        "reranking",
        "sentence_embedding",
        "token_classification",
    ],
)
def test_a_whole_run(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, tokenizer = case.model(), make_processor(case.processor)
    data = splits_like(name, 24)
    settings: dict[str, Any] = {
        "task": {**case.settings, "batch_size": 8},
        "prune": {"block_size": 8, "layout": "per_layer"},
        "search": {"rounds": 2, "pulls_per_arm": 2},
        "output": {"random_seeds": 1},
    }
    result = prune(model, tokenizer, **data, target={"neurons": 0.5}, output_dir=tmp_path / "out", **settings)
    report = result.report
    assert report.task == name
    assert report.main_metric == TASKS.get(name).default_metrics[0]
    assert report.after.kl is not None and report.after.kl > 0
    assert report.after.macs < report.before.macs
    assert report.reload["max_logit_difference"] < 1e-4
    said, loss = (tmp_path / "out" / "README.md").read_text(), TASKS.get(name).loss_name
    assert (f"Loss and KL are both\nthe mean {loss}." if name == "sentence_embedding" else f"mean\n{loss}, KL") in said


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
def test_a_whole_run_of_several_numbers(tmp_path: Path) -> None:
    case = CASES["regression"]
    rows = {**case.rows, "score": [[number, 2.0 - number] for number in case.rows["score"]]}
    data = {split: rows_like(rows, 24, at) for at, split in enumerate(("calibration", "validation", "test"))}
    model = case.model(num_labels=2, problem_type="regression")
    result = prune(
        model,
        make_processor(case.processor),
        **data,
        target={"neurons": 0.5},
        output_dir=tmp_path / "out",
        task={"batch_size": 8},
        prune={"block_size": 8, "layout": "per_layer"},
        search={"rounds": 2, "pulls_per_arm": 2},
        recovery={"learning_rate": 1e-3, "epochs": 1},
        output={"random_seeds": 1},
    )
    assert (result.report.task, set(result.report.after.metrics)) == ("regression", {"pearson", "spearman", "mse"})
    assert result.model(**make_processor(case.processor)("a b", return_tensors="pt")).logits.shape == (1, 2)


def test_recovery_by_labels_that_are_not_there_is_refused(tmp_path: Path) -> None:
    data, recovery = splits_like("sentence_embedding", 8), {"alpha": 0.0}
    case, target = CASES["sentence_embedding"], {"neurons": 0.5}
    with pytest.raises(ValueError, match="alpha must be above 0, since the data of this task say nothing of what"):
        prune(
            case.model(), make_tokenizer("pair"), **data, target=target, output_dir=tmp_path / "o", recovery=recovery
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "reward", "message"),
    [
        ("regression", "accuracy", "reward accuracy needs classes, this task predicts numbers; use one of kl"),
        ("sentence_embedding", "loss", "reward loss needs a loss, this task has none; use one of kl$"),
    ],
)
def test_a_reward_that_a_task_has_not_is_refused(name: str, reward: str, message: str, tmp_path: Path) -> None:
    data = splits_like(name, 8)
    with pytest.raises(ValueError, match=message):
        prune(
            CASES[name].model(),
            make_tokenizer("pair"),
            **data,
            target={"neurons": 0.5},
            output_dir=tmp_path / "out",
            search={"reward": reward},
        )
    assert not (tmp_path / "out").exists()
