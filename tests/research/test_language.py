"""The benchmark on one language model: what is cut equals what rivals mean, rows resume, and the report ranks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from hf_mabprune.config import PruneConfig, check
from hf_mabprune.session import Session, make_session
from research.benchmarks import language
from research.benchmarks.endings import answered, read_questions
from research.benchmarks.language import ITS_OWN, Bench, comparable, smaller
from research.benchmarks.language_report import report
from research.benchmarks.language_rows import Cell, Measured, Rows, cell_of, read_rows
from research.benchmarks.rivals import RIVALS, applied
from tests.seeds import moved
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import outputs_of, tiny_model

pytestmark = pytest.mark.whole


def text(seed: int) -> Dataset:
    words = np.random.default_rng(moved(seed)).choice(list("abcdefghij"), 600)
    return Dataset.from_dict({"text": [" ".join(words)]})


@pytest.fixture(scope="module")
def settings() -> PruneConfig:
    task = {"dataset": {"path": "in-memory"}, "type": "causal_lm", "max_length": 16, "batch_size": 8}
    prune = {"target": {"layer_parameters": [0.2, 0.4]}, "block_size": 4}
    given = {"model": {"name": "tiny"}, "task": {**task, "calibration_examples": 16, "refit_examples": 0}}
    return comparable(check({**given, "prune": prune, "output": {"dir": "unused"}}))


@pytest.fixture(scope="module")
def session(settings: PruneConfig) -> Session:
    model = tiny_model("llama", "AutoModelForCausalLM", num_hidden_layers=4)
    splits = {split: text(number) for number, split in enumerate(("calibration", "validation", "test"))}
    return make_session(settings, model, make_tokenizer("plain"), splits, Accelerator(cpu=True), torch.float32)


def test_what_is_measured_of_a_rival_is_the_model_that_it_means(session: Session) -> None:
    for name in RIVALS:
        chosen = RIVALS[name](session.dense, session.task, session.batches["calibration"], 0.4)
        with applied(session.dense, chosen):
            meant = outputs_of(session.dense)
        with smaller(session, chosen, ITS_OWN) as small:
            torch.testing.assert_close(outputs_of(small), meant, rtol=1e-3, atol=1e-4)


def test_an_interrupted_run_goes_on_and_every_method_has_the_size_that_is_asked_for(
    settings: PruneConfig, session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(language, "open_session", lambda *_: session)
    out, methods, story = tmp_path / "rows.jsonl", ["magnitude", "obs", "race", "2ssp"], tmp_path / "story.parquet"
    text(3).to_parquet(str(story))
    add, left = Rows.add, [5]

    def interrupted(rows: Rows, row: Measured) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        add(rows, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Rows, "add", interrupted)
        language.run(settings, out, methods, [f"story={story}"])
    before = read_rows(out)
    language.run(settings, out, methods, [f"story={story}"])
    rows = read_rows(out)
    assert rows[:5] == before and len({cell_of(row) for row in rows}) == len(rows) == 16
    assert all(abs(row["gone"] - row["size"]) < 0.05 for row in rows)
    for method in methods:
        best = min((row for row in rows if row["method"] == method), key=lambda row: row["validation_kl"])
        assert {*best["texts"]} == {"test", "story"} and best["texts"]["test"]["kl"] > 0
    written = report(out)
    assert all(name in written for name in ("magnitude", "2ssp, least_squares", "Mean ranks", "best other"))
    with pytest.raises(ValueError, match="other settings"):
        language.run(settings, out, methods)


def test_what_cannot_be_chosen_by_is_refused_before_a_model_is_loaded(settings: PruneConfig, tmp_path: Path) -> None:
    wrong = check({**settings.model_dump(), "search": {"rule": {"name": "refit", "moovs": 3}}})
    with pytest.raises(ValueError, match=r"rule 'refit' has no option 'moovs'. Did you mean 'moves'"):
        language.run(wrong, tmp_path / "rows.jsonl", ["magnitude", "race"])


def test_a_worse_allocation_is_not_measured_on_test_texts(session: Session) -> None:
    bench = Bench(session, ("test",), {})
    cell = Cell("magnitude", 0.4, "own", "least_squares")
    (_, chosen), *_ = bench.choices("magnitude", [cell])
    assert bench.row(cell, chosen, 0.0)["texts"] == {}
    assert {*bench.row(cell, chosen, float("inf"))["texts"]} == {"test"}


def test_questions_are_answered_by_the_likeliest_ending(session: Session, tmp_path: Path) -> None:
    model, tokenizer = session.dense, session.processor
    contexts, endings = ["a b c", "d e", "f g h i", "j"], ["a b", "c d e"]

    def loss(context: str, ending: str) -> float:
        before, after = tokenizer(context)["input_ids"], tokenizer(ending)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        return -float(np.mean([logits[len(before) - 1 + place, token] for place, token in enumerate(after)]))

    best = [int(np.argmin([loss(context, ending) for ending in endings])) for context in contexts]
    labels = [best[0], 1 - best[1], best[2], best[3]]
    file = tmp_path / "questions.parquet"
    pd.DataFrame({"ctx": contexts, "endings": [endings] * 4, "label": labels}).to_parquet(file)
    right = answered(model, session.task, read_questions(str(file), 4, 0), 16, 3)
    assert right.sum() == 3
