"""Rows for every task, made of real texts by rules that are stated here and that a model has to learn.

Texts are SICK (pairs of sentences with entailment and relatedness), AG News (short news of four topics) and GSM8K
(problems with worked answers), each a folder of parquet files; tables are those of `research.studies.paper.tables`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

Rows = dict[str, list[Any]]
Maker = Callable[[Path, str, int, np.random.Generator], Rows]

NAME, ACRONYM = "NAME", "ACRONYM"
TAGS = ["O", *(f"{begin}-{kind}" for kind in (NAME, ACRONYM) for begin in "BI")]
SUBJECT = re.compile(r"((?:An?|The|Two|Some|Three|Several) .+?) (?:is|are) (.+)")
CANDIDATES = 5  # of a query
WORDS = 28  # of a text whose entities are marked


def texts_of(folder: Path, name: str, split: str, *columns: str) -> list[Any]:
    """Reads columns of a split, a tuple a row; of one column, its values."""
    dataset = Dataset.from_parquet(str(folder / name / f"{split}.parquet"))
    values = [list(dataset[column]) for column in columns]
    return values[0] if len(columns) == 1 else list(zip(*values, strict=True))


def entities(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Marks names and acronyms in news, the case of which is taken away.

    A name is a run of words that begin with a capital within a sentence, an acronym one of words of capitals alone.
    What is left to a model is lower case, so that words and their neighbours have to tell.
    """
    rows: Rows = {"tokens": [], "ner_tags": []}
    for text in islice(drawn(texts_of(folder, "agnews", split, "text"), rng), count):
        words = re.findall(r"[A-Za-z][\w'.-]*[\w]|\w|[.,;:!?$%()-]", text)[:WORDS]
        kinds = [kind_of(word, first) for word, first in zip(words, [".", *words], strict=False)]
        rows["tokens"].append([word.lower() for word in words])
        rows["ner_tags"].append(
            [
                "O" if kind is None else f"{'I' if kind == before else 'B'}-{kind}"
                for kind, before in zip(kinds, [None, *kinds], strict=False)
            ]
        )
    return rows


def kind_of(word: str, before: str) -> str | None:
    """Tells which entity a word is part of, if any, from its case and the word before it."""
    if len(word) > 1 and word.isupper():
        return ACRONYM
    return NAME if len(word) > 1 and word[0].isupper() and before not in (".", "!", "?", ":", "-", ")") else None


def spans(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Asks who does what one of three sentences says; the answer is its subject.

    Where SICK has another sentence that says the same of the same subject, the question is asked in its words.
    """
    pairs = texts_of(folder, "nli_sick", split, "premise", "hypothesis", "label")
    asked: dict[str, tuple[str, str]] = {}
    for one, other, label in pairs:
        found, again = SUBJECT.fullmatch(one), SUBJECT.fullmatch(other)
        if found:
            same = again is not None and label == 0 and again[1] == found[1]
            asked[one] = found[1], (again if same and again else found)[2]
    sentences = list(asked)
    rows: Rows = {"question": [], "context": [], "answers": []}
    for one in islice(drawn(sentences, rng), count):
        subject, action = asked[one]
        others = [sentences[n] for n in rng.choice(len(sentences), 2, replace=False)]
        if any(asked[other][1] == action or other == one for other in others):
            continue
        shown = [one, *others]
        context = ". ".join(shown[n] for n in rng.permutation(3))
        rows["question"].append(f"Who is {action}?")
        rows["context"].append(context)
        rows["answers"].append({"text": [subject], "answer_start": [context.index(one)]})
    return rows


def gaps(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Gives sentences of SICK, each once."""
    pairs = texts_of(folder, "nli_sick", split, "premise", "hypothesis")
    sentences = sorted({sentence for pair in pairs for sentence in pair})
    return {"text": list(islice(drawn(sentences, rng), count))}


def topics(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Puts the beginnings of one to three news together; the labels are all of their topics."""
    news = texts_of(folder, "agnews", split, "text", "label")
    rows: Rows = {"text": [], "labels": []}
    for _ in range(count):
        chosen = [news[n] for n in rng.choice(len(news), rng.integers(1, 4), replace=False)]
        rows["text"].append(" / ".join(" ".join(text.split()[:9]) for text, _ in chosen))
        rows["labels"].append([int(topic in {label for _, label in chosen}) for topic in range(4)])
    return rows


def numbers(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Gives pairs of SICK with two numbers: relatedness from 0 to 1, and 1, 0, -1 for what follows, is open, is
    denied."""
    pairs = texts_of(folder, "nli_sick", split, "premise", "hypothesis", "relatedness", "label")
    one, other, relatedness, label = zip(*islice(drawn(pairs, rng), count), strict=True)
    both = [[(related - 1) / 4, 1.0 - follows] for related, follows in zip(relatedness, label, strict=True)]
    return {"text": list(one), "text_pair": list(other), "label": both}


def order(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Puts the words of sentences of SICK, of three to eight words, into an order that says nothing: the alphabet's;
    the target is the sentence."""
    sentences = [text.lower() for text in gaps(folder, split, 10**9, rng)["text"] if 3 <= len(text.split()) <= 8]
    chosen = list(islice(dict.fromkeys(sentences), count))
    return {"source": [" ".join(sorted(text.split())) for text in chosen], "target": chosen}


def candidates(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Takes the first half of a text of news as a query; the right one of five candidates is its second half, the
    others are second halves of other news of the same topic."""
    news = texts_of(folder, "agnews", split, "text", "label")
    parted = [(text.split()[: len(text.split()) // 2], text.split()[len(text.split()) // 2 :], n) for text, n in news]
    rows: Rows = {"query": [], "candidates": [], "label": []}
    for query, answer, topic in islice(drawn([row for row in parted if len(row[0]) > 7], rng), count):
        same = [other for _, other, n in parted if n == topic and other != answer]
        chosen = [answer, *(same[n] for n in rng.choice(len(same), CANDIDATES - 1, replace=False))]
        places = rng.permutation(CANDIDATES)
        rows["query"].append(" ".join(query[-16:]))
        rows["candidates"].append([" ".join(chosen[place][:16]) for place in places])
        rows["label"].append(int(np.flatnonzero(places == 0)[0]))
    return rows


def chats(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Gives short problems of GSM8K and their worked answers as messages of a user and an assistant."""
    problems = texts_of(folder, "gsm8k", split, "question", "answer")
    short = [(asked, re.sub(r"<<.*?>>", "", said)) for asked, said in problems if len(asked) + len(said) < 360]
    turns = list(islice(drawn(short, rng), count))
    return {
        "messages": [
            [{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in turns
        ]
    }


def pairs(folder: Path, split: str, count: int, rng: np.random.Generator) -> Rows:
    """Gives pairs of SICK with their relatedness."""
    chosen = islice(drawn(texts_of(folder, "nli_sick", split, "premise", "hypothesis", "relatedness"), rng), count)
    one, other, score = zip(*chosen, strict=True)
    return {"sentence1": list(one), "sentence2": list(other), "score": list(score)}


def splits(maker: Maker, folder: Path, counts: Mapping[str, int], seed: int = 0) -> dict[str, Dataset]:
    """Makes the rows of a task: training ones from the training split of the texts, the others from their test split.

    Args:
        maker: What makes rows, one of `MAKERS`.
        folder: Folder of the texts.
        counts: Number of rows that are drawn for train, validation and test; a maker may leave some of them out.
        seed: Seed of all draws.

    Returns:
        Split -> rows; those of validation and test that are in training too are left out.
    """
    rng = np.random.default_rng(seed)
    train = Dataset.from_dict(maker(folder, "train", counts["train"], rng))
    others = Dataset.from_dict(maker(folder, "test", counts["validation"] + counts["test"], rng))
    known = {repr(row) for row in train}
    fresh = others.select([number for number, row in enumerate(others) if repr(row) not in known])
    border = min(counts["validation"], len(fresh) // 2)
    return {
        "train": train,
        "validation": fresh.select(range(border)),
        "test": fresh.select(range(border, len(fresh))),
    }


def drawn(values: Sequence[Any], rng: np.random.Generator) -> Iterator[Any]:
    """Gives all values in a drawn order."""
    return (values[number] for number in rng.permutation(len(values)))


MAKERS: Mapping[str, Maker] = {
    "token_classification": entities,
    "question_answering": spans,
    "masked_lm": gaps,
    "multi_label_classification": topics,
    "regression": numbers,
    "seq2seq": order,
    "sentence_embedding": pairs,
    "reranking": candidates,
    "causal_lm": chats,
}
