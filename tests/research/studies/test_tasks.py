from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from research.studies.tasks import recompute, rows
from research.studies.tasks.readings import Said

NEWS = [
    "Fund pays Oslo The IMF and Ann Lee met in Rome on Monday to talk about the plan for next year.",
    "Shares fall in Paris after the new Acme report said that costs were higher than last spring.",
    "Rain stops play as Leeds United drew with York and the fans of both went home early that night.",
]
PAIRS = [
    ("A man is eating soup", "Soup is being eaten by a man", 0, 4.8),
    ("A dog is running fast", "A dog is racing", 0, 4.5),
    ("Two cats are asleep", "Two cats are awake", 2, 3.0),
    ("The girl is singing", "A boy is cooking rice", 1, 1.5),
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of a few texts, as large ones lie."""
    one, other, label, relatedness = map(list, zip(*PAIRS, strict=True))
    tables = {
        "agnews": {"text": NEWS, "label": [0, 0, 1]},
        "nli_sick": {"premise": one, "hypothesis": other, "label": label, "relatedness": relatedness},
        "gsm8k": {"question": ["1 + 1?"], "answer": ["It is 1+1=<<1+1=2>>2\n#### 2"]},
    }
    for name, columns in tables.items():
        for split in ("train", "test"):
            (tmp_path / name).mkdir(exist_ok=True)
            Dataset.from_dict(columns).to_parquet(str(tmp_path / name / f"{split}.parquet"))
    return tmp_path


def test_entities_are_told_by_case_alone(texts: Path) -> None:
    made = rows.entities(texts, "train", 3, np.random.default_rng(0))
    (row,) = [number for number, words in enumerate(made["tokens"]) if "imf" in words]
    marked = dict(zip(made["tokens"][row], made["ner_tags"][row], strict=True))
    assert (marked["imf"], marked["ann"], marked["lee"]) == ("B-ACRONYM", "B-NAME", "I-NAME")
    assert (marked["rome"], marked["monday"], marked["fund"], marked["met"]) == ("B-NAME", "B-NAME", "O", "O")
    assert all(word == word.lower() for word in made["tokens"][row])


def test_answers_stand_where_they_are_said_to(texts: Path) -> None:
    made = rows.spans(texts, "train", 4, np.random.default_rng(0))
    asked = dict(zip(made["question"], zip(made["context"], made["answers"], strict=True), strict=True))
    context, answer = asked["Who is racing?"]  # the dog's other sentence, of the same subject
    start = answer["answer_start"][0]
    assert context[start : start + 5] == answer["text"][0] == "A dog"
    assert context[start:].startswith("A dog is running fast")


def test_candidates_hold_the_second_half_at_the_label(texts: Path) -> None:
    folder = texts / "agnews" / "train.parquet"
    many = [f"{text} {number}" for number, text in enumerate(NEWS * 4)]
    Dataset.from_dict({"text": many, "label": [0] * len(many)}).to_parquet(str(folder))
    made = rows.candidates(texts, "train", 2, np.random.default_rng(0))
    for query, candidates, label in zip(made["query"], made["candidates"], made["label"], strict=True):
        assert any(text.endswith(f"{query} {candidates[label]}") for text in many)
        assert len(set(candidates)) == rows.CANDIDATES


def test_test_rows_are_not_in_training(texts: Path) -> None:
    made = rows.splits(rows.gaps, texts, {"train": 5, "validation": 2, "test": 2})
    known = set(made["train"]["text"])
    assert not known & {*made["validation"]["text"], *made["test"]["text"]}


def test_spans_are_counted_as_conlleval_counts_them() -> None:
    tags = ["I-X", "I-X", "O", "B-X", "B-X", "I-Y", "I-Y"]
    assert list(recompute.spans(tags)) == [("X", 0, 1), ("X", 3, 3), ("X", 4, 4), ("Y", 5, 6)]


def test_figures_are_those_worked_out_by_hand() -> None:
    """Logits 0 and log 3 give probabilities of 1/4 and 3/4."""
    small = [Said(torch.tensor([[0.0, np.log(3)]]), torch.tensor([1]))]
    dense = [Said(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))]
    found = recompute.figures("tabular_classification", small, dense)
    assert found["loss"] == pytest.approx(np.log(4 / 3))
    assert found["kl"] == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert found["accuracy"] == 1
