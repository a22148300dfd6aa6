"""Stories: answers checked by a reader that goes back from the question, and knows nothing of how stories are made."""

import re
from itertools import islice

import pytest

from research.studies.paper.deep.networks import sentence_tokenizer
from research.studies.paper.deep.stories import KINDS, data_set, questions
from tests.seeds import moved

COUNTS = ("none", "one", "two", "three")
MOVE, TAKE, DROP = (re.compile(rf"(\w+) {verb} the (\w+)") for verb in ("went to", "took", "dropped"))


def place_of(person: str, sentences: list[str]) -> str | None:
    """The room that somebody went to last."""
    moves = [found.group(2) for sentence in sentences if (found := MOVE.match(sentence)) and found[1] == person]
    return moves[-1] if moves else None


def place_of_thing(thing: str, sentences: list[str]) -> str | None:
    """Where the last one to touch a thing was when they dropped it, or is now if they still have it."""
    for number in reversed(range(len(sentences))):
        taken, dropped = TAKE.match(sentences[number]), DROP.match(sentences[number])
        if taken and taken[2] == thing:
            return place_of(taken[1], sentences)
        if dropped and dropped[2] == thing:
            return place_of(dropped[1], sentences[:number])
    return None


def carried(person: str, sentences: list[str]) -> int:
    """How often somebody took a thing, less how often they dropped one."""
    touched = [[found for sentence in sentences if (found := verb.match(sentence))] for verb in (TAKE, DROP)]
    took, dropped = (sum(found[1] == person for found in each) for each in touched)
    return took - dropped


def answer(question: str, story: str) -> str | None:
    """Answers any question."""
    sentences = [sentence.strip() for sentence in story.split(".") if sentence.strip()]
    if found := re.fullmatch(r"Where is the (\w+)\?", question):
        return place_of_thing(found[1], sentences)
    if found := re.fullmatch(r"Where is (\w+)\?", question):
        return place_of(found[1], sentences)
    if found := re.fullmatch(r"Is (\w+) in the (\w+)\?", question):
        return "yes" if place_of(found[1], sentences) == found[2] else "no"
    if found := re.fullmatch(r"How many objects is (\w+) carrying\?", question):
        return COUNTS[carried(found[1], sentences)]
    found = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question)
    assert found
    places = [place_of_thing(found[1], sentences[: number + 1]) for number in range(len(sentences))]
    (change,) = (number for number, place in enumerate(places) if place == found[2] != places[number - 1])
    return places[change - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right(kind: str) -> None:
    rows = list(islice(questions(kind, moved(0)), 150))
    assert [answer(question, story) for story, question, _ in rows] == [given for *_, given in rows]
    assert {given for *_, given in rows} == set(KINDS[kind].answers)
    assert rows == list(islice(questions(kind, moved(0)), 150))
    assert rows != list(islice(questions(kind, moved(1)), 150))


def test_splits_share_no_story_with_its_question() -> None:
    made = data_set("yes_no", {"train": 200, "validation": 50, "test": 50}, moved(0))
    rows = [(row["story"], row["question"]) for part in made.values() for row in part]
    assert len(set(rows)) == len(rows) == 300
    labels = made["test"].features["label"]
    first = made["test"][0]
    assert labels.int2str(first["label"]) == answer(first["question"], first["story"])


def test_a_token_is_a_sentence() -> None:
    tokenizer = sentence_tokenizer(["Is Mary in the office?", "Mary went to the office. John took the milk."])
    ids = tokenizer("Is Mary in the office?", "John took the milk. Mary flew home.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "[CLS]", "Is Mary in the office?", "[SEP]", "John took the milk.", "[UNK]", "[SEP]",
    ]  # fmt: skip
