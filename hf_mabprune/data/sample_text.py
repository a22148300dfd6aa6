"""The text that comes with the package, for a first try on no data of one's own."""

import re
from pathlib import Path

from datasets import Dataset

FOLDER = Path(__file__).with_name("text")
SPLITS = ("train", "validation", "test")
SENTENCE_END = re.compile(r'(?<=[.!?]"|.[.!?]) (?=["A-Z0-9])')
NOTE = (
    "no data were named: the figures are of a text that comes with hf_mabprune, of English Wikipedia, and say nothing "
    "of other texts and of what else the model is for"
)


def sample_text() -> dict[str, Dataset]:
    """Reads paragraphs of Wikipedia: split -> one row a sentence.

    Column `sentence` has the sentence, for models that read one at a time; `text` the paragraph that begins with it,
    as a line of running text, and nothing in the rows of its other sentences, so that the texts in their order are the
    whole text.
    """
    return {split: _rows((FOLDER / f"{split}.txt").read_text(encoding="utf-8")) for split in SPLITS}


def _rows(text: str) -> Dataset:
    """Makes the rows of a file."""
    columns: dict[str, list[str]] = {"text": [], "sentence": []}
    for paragraph in text.splitlines():
        sentences = SENTENCE_END.split(paragraph)
        columns["sentence"] += sentences
        columns["text"] += [f"{paragraph}\n", *[""] * (len(sentences) - 1)]
    return Dataset.from_dict(columns)
