"""What every registered place must do, on tiny pruned models: the same as plain Auto classes, or a reason."""

from pathlib import Path

import pytest
import torch

from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.places import PLACES, Found, Place, Subject, Untried, subject_of, tried
from hf_mabprune.surgery.cut import cut
from tests.problems import selection
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

COMPILING = {"torch_compile"}  # which takes a C++ compiler, and minutes
MODELS = {"bert": "AutoModelForSequenceClassification", "llama": "AutoModelForCausalLM"}


@pytest.fixture(scope="module", params=MODELS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A pruned model with its tokenizer, sizes per layer."""
    folder, head = tmp_path_factory.mktemp("model"), MODELS[request.param]
    model = tiny_model(request.param, head)
    tokenizer = make_tokenizer("pair" if request.param == "bert" else "plain")
    save_checkpoint(cut(model, selection(model, "per_layer"), "per_layer"), folder, tokenizer, torch.float32)
    return subject_of(folder)


def test_a_subject_says_what_it_is(subject: Subject) -> None:
    assert subject.auto_class == MODELS[subject.model_type]
    assert subject.layout == "per_layer" and len(subject.texts) == len(subject.expected)
    assert subject.difference(subject.expected) == 0
    assert subject.difference(subject.expected + 0.5) == pytest.approx(0.5)


@pytest.mark.whole
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in COMPILING else []) for name in PLACES.names()],
)
def test_a_place_gives_what_plain_auto_classes_give(name: str, subject: Subject) -> None:
    row = tried(name, subject)
    assert "DIR" in row.recipe and str(subject.folder) not in f"{row.recipe} {row.note}"
    assert row.outcome in ("same", "cannot", "untried"), str(row)
    if row.outcome == "same":
        assert row.difference is not None and row.difference <= PLACES.get(name).tolerance and row.seconds
    else:
        assert row.note and row.difference is None and row.seconds is None


@pytest.mark.parametrize(
    ("error", "difference", "outcome", "note"),
    [
        (None, 1e-5, "same", ""),
        (None, 0.5, "other", ""),
        (None, float("nan"), "other", ""),
        (Untried("no card"), 0, "untried", "no card"),
        (OSError("no such file"), 0, "failed", "no such file"),
    ],
)
def test_what_came_of_a_place_is_said(
    error: Exception | None,
    difference: float,
    outcome: str,
    note: str,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Made(Place):
        def recipe(self, subject: Subject) -> str:
            return 'load("DIR")'

        def reach(self, subject: Subject, work: Path) -> Found:
            assert work.is_dir()
            if error:
                raise error
            return Found(difference)

    monkeypatch.setitem(PLACES._entries, "made", Made)
    row = tried("made", subject)
    assert (row.outcome, note in row.note) == (outcome, True)
    monkeypatch.setattr(Made, "modules", ("no_such_module",))
    monkeypatch.setattr(Made, "remedy", "pip install such-a-thing")
    row = tried("made", subject)
    assert (row.outcome, row.note) == ("untried", "no_such_module not installed: pip install such-a-thing")
    monkeypatch.setattr(Made, "cannot", lambda *_: "never")
    assert tried("made", subject).outcome == "cannot"
