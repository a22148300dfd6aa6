"""Extractive question answering: find where in a context the answer to a question stands."""

import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from hf_mabprune.data.columns import RowError, full_column, is_list
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import NO_CLASS, Readout
from hf_mabprune.tasks.scores import Scores
from hf_mabprune.tasks.token_task import TokenTask, check_fast, check_padding

OFFSETS, TEXTS = "offsets", "texts"  # of a batch, beside the inputs of the model
NEVER = -1e4  # logit of padding, which every precision holds
BEHIND = "\0"  # a text
LONGEST = 30  # tokens of an answer that is looked for, as in transformers' pipeline and examples
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class SpanReadout(Readout):
    """Where an answer begins and where it ends: two positions, each a distribution over the tokens.

    Attributes:
        outputs: Logits of every token, [B, 2, T]; [A, B, 2, T] for `divergence`.
        targets: First and last token of the right answer, [B, 2].
        offsets: Where each token stands in the context, its first character and the one behind its last, [B, T, 2];
            the same twice for what is no token of the context.
        texts: Code points of the context and of all right answers, 0 behind each, [B, characters, 1]; the last
            dimension keeps them from being cut as tokens are.
    """

    offsets: torch.Tensor
    texts: torch.Tensor

    def spans(self) -> torch.Tensor:
        """Gives the most probable first and last token, [B, 2]; both of the context, in this order and at most 30
        tokens from each other. -1 where a logit is NaN."""
        starts, ends = self.outputs.float().log_softmax(-1).unbind(-2)
        tokens = starts.shape[-1]
        inside = self.offsets[:, :tokens, 1] > self.offsets[:, :tokens, 0]
        allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=starts.device).triu().tril(LONGEST - 1)
        allowed = allowed & inside.unsqueeze(2) & inside.unsqueeze(1)
        together = (starts.unsqueeze(2) + ends.unsqueeze(1)).masked_fill(~allowed, -torch.inf)
        best = together.flatten(1).argmax(1)
        found = torch.stack([best // tokens, best % tokens], 1)
        return found.masked_fill(self.outputs.isnan().flatten(1).any(1, keepdim=True), NO_CLASS)

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives first and last token of the predicted and of the right answer of each example, [2 * B] each."""
        return self.spans().flatten(), self.targets.flatten()

    def scores(self, with_predictions: bool = True) -> Scores:
        """See `Readout.scores`; an answer is right if its text is that of a right one, and `overlap` is the F1 of
        their words, the largest of all right answers, both as SQuAD has it."""
        pairs = [(predicted, right) for predicted, *right in self._answers()]
        exact = [max(normal(predicted) == normal(answer) for answer in right) for predicted, right in pairs]
        overlap = [max(word_f1(predicted, answer) for answer in right) for predicted, right in pairs]
        scores = super().scores(with_predictions)
        return replace(scores, correct=np.array(exact, dtype=float), overlap=np.array(overlap, dtype=float))

    def _answers(self) -> Iterator[list[str]]:
        """Gives the predicted answer of each example, and the right ones."""
        texts, offsets, spans = (tensor.cpu().numpy() for tensor in (self.texts, self.offsets, self.spans()))
        for codes, places, (first, last) in zip(texts, offsets, spans, strict=True):
            context, *right = "".join(map(chr, codes[:, 0])).rstrip(BEHIND).split(BEHIND)
            predicted = "" if first == NO_CLASS else context[places[first, 0] : places[last, 1]]
            yield [predicted, *right]


@TASKS.register("question_answering")
@dataclass(kw_only=True)
class QuestionAnswering(TokenTask):
    """Finds the answer to a question in a text. Roles: `question`, `context` and `answers`, as SQuAD has them.

    Answers are `{text: [...], answer_start: [...]}`, of which there must be one that stands in the context; the first
    is learnt, and metrics take the best of all. What the model says is two distributions over tokens, of where an
    answer begins and where it ends: losses and divergences are the mean of both, padding apart. `exact_match` and
    `word_f1` compare the texts of answers as SQuAD does (Rajpurkar et al., arXiv 1606.05250, section 6.1): without
    case, punctuation and articles.

    Question and context have at most `max_length` tokens together, 384 by default. Of a longer context the model is
    shown the part with the answer: that one of the windows, a new one every half of their length, whose middle is the
    nearest to it. Figures are of these windows, so higher than where the answer has to be looked for in all of them.
    """

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    pipeline_tag: ClassVar[str | None] = "question-answering"
    heads: ClassVar[tuple[str, ...]] = ("ForQuestionAnswering",)
    roles: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    default_metrics: ClassVar[tuple[str, ...]] = ("exact_match", "word_f1")
    metric_inputs: ClassVar[dict[str, str]] = {
        "predictions": "predicted",
        "references": "reference",
        "correct": "correct",
        "overlap": "overlap",
    }
    default_length: ClassVar[int] = 384
    rows_are_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.classes != 2:
            raise ValueError(
                f"num_labels must be 2, for the start and the end of an answer, got {self.classes}; use a model that "
                "was trained to find answers"
            )
        check_padding(self.processor, self.model_config)
        check_fast(self.processor)
        super().__post_init__()

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head two outputs a token, for start and end."""
        return {"num_labels": 2}

    def rehearsal(self) -> Scores:
        """Makes scores like those of a split, all answers right."""
        scores = super().rehearsal()
        return replace(scores, overlap=np.ones(len(scores.losses)))

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists the names that SQuAD and its like have."""
        return [
            {"question": "question", "context": context, "answers": "answers"} for context in ("context", "passage")
        ]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, and answers that do not stand in their context."""
        columns = self.find_columns(dataset, split)
        for role in ("question", "context"):
            self.check_texts(dataset, columns[role], split)
        where = f"split '{split}', column '{columns['answers']}'"
        answers = full_column(dataset, columns["answers"], split)
        kinds = {part.name: part.type for part in answers.type} if pa.types.is_struct(answers.type) else {}
        if not all(name in kinds and is_list(kinds[name]) for name in ("text", "answer_start")):
            raise ValueError(f"{where}: answers must be {{text: [...], answer_start: [...]}}, got {answers.type}")
        contexts = full_column(dataset, columns["context"], split).to_pylist()
        for row, (context, found) in enumerate(zip(contexts, answers.to_pylist(), strict=True)):
            if problem := _problem(context, found):
                raise ValueError(f"{where}: {problem} in row {row}; remove such rows")

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: what the tokenizer gives for question and window, [T], `labels`, the first and the
        last token of the answer, and what answers are read from: `offsets`, [T, 2], and `texts`, the part of the
        context that is shown, and all right answers.

        Raises:
            ValueError: If the question leaves no room for the answer.
        """
        columns = self.find_columns(dataset, "data")
        question, context, answers = (columns[role] for role in self.roles)
        tokenizer, length = self.processor, self.length

        def tokenise(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            given = rows[question], rows[context]
            encoded = tokenizer(*given, return_offsets_mapping=True, verbose=False)
            offsets = encoded.pop("offset_mapping")
            made: dict[str, list[Any]] = {name: [] for name in (*encoded, LABELS, OFFSETS, TEXTS)}
            for row, right in enumerate(rows[answers]):
                places = np.array(offsets[row])
                places[[text != 1 for text in encoded.sequence_ids(row)]] = 0  # the question, and what frames both
                answer = _tokens_of(places, right["answer_start"][0], len(right["text"][0]))
                kept = _window(places, answer, length)
                if not len(kept):
                    message = f"question and answer must fit into {length} tokens, in row {{row}} they do not; "
                    raise RowError(f"{message}raise max_length, or remove such rows", numbers[row])
                for name in encoded:
                    made[name].append(np.array(encoded[name][row])[kept])
                made[LABELS].append(np.flatnonzero(np.isin(kept, answer))[[0, -1]])
                begin, end = places[kept][places[kept, 1] > 0][[0, -1], [0, 1]]
                made[OFFSETS].append(np.where(places[kept, 1:] > 0, places[kept] - begin, 0))
                texts = given[1][row][begin:end], *right["text"]
                made[TEXTS].append(BEHIND.join(text.replace(BEHIND, " ") for text in texts))
            return made

        dataset = dataset.select_columns([question, context, answers])
        encoded = dataset.map(
            tokenise, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="Tokenising"
        )
        self.check_ids(encoded)
        return encoded

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs [B, T], padded on the right, labels [B, 2], and `offsets` and `texts` as a `SpanReadout` has
        them."""
        codes = [torch.tensor([[ord(character)] for character in example[TEXTS]]) for example in examples]
        return Batch(
            self.padded(examples, apart=(LABELS, OFFSETS, TEXTS)),
            labels=torch.tensor([example[LABELS] for example in examples]),
            offsets=pad_sequence([torch.tensor(example[OFFSETS]) for example in examples], batch_first=True),
            texts=pad_sequence(codes, batch_first=True),
        )

    def inputs(self, batch: Batch) -> Batch:
        """Gives the arguments of a forward pass, without what answers are compared by."""
        return Batch((name, tensor) for name, tensor in super().inputs(batch).items() if name not in (OFFSETS, TEXTS))

    def inputs_with_labels(self, batch: Batch) -> Batch:
        """See `Task.inputs_with_labels`."""
        first, last = batch[LABELS].unbind(1)
        return Batch(self.inputs(batch), start_positions=first, end_positions=last)

    def logits(self, outputs: Any) -> torch.Tensor:
        """Takes those of starts and of ends, [B, 2, T]."""
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=1)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Takes all tokens that are not padding, [B, 2, T]."""
        tokens = batch["attention_mask"].bool().unsqueeze(1)
        outputs = logits.masked_fill(~tokens, NEVER)
        return SpanReadout(outputs=outputs, targets=batch[LABELS], offsets=batch[OFFSETS], texts=batch[TEXTS])


def normal(answer: str) -> str:
    """Gives an answer as SQuAD compares it: in lower case, without punctuation and articles, one space between words.

    Those are the steps of the evaluation script of SQuAD 1.1, in their order.
    """
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(NO_PUNCTUATION)).split())


def word_f1(predicted: str, right: str) -> float:
    """Measures how far the words of two answers overlap, as that script does: the harmonic mean of the part of one and
    of the part of the other; 0 where they have no word in common."""
    words, others = (Counter(normal(answer).split()) for answer in (predicted, right))
    return 2 * (words & others).total() / max(1, words.total() + others.total())


def _problem(context: str, answers: dict[str, list[Any] | None]) -> str | None:
    """Says what is wrong with the answers of a row; None where nothing is."""
    texts, starts = answers["text"] or [], answers["answer_start"] or []
    if not texts or len(texts) != len(starts):
        return f"there must be an answer, and a start for each, got {len(texts)} answers and {len(starts)} starts"
    for text, start in zip(texts, starts, strict=True):
        if not text or start is None or start < 0 or context[start : start + len(text)] != text:
            return f"answers must stand in the context where answer_start says, got {text!r} at {start}"
    return None


def _tokens_of(places: NDArray[np.int64], start: int, characters: int) -> NDArray[np.int64]:
    """Finds the tokens that hold a piece of the context."""
    return np.flatnonzero((places[:, 0] < start + characters) & (places[:, 1] > start))


def _window(places: NDArray[np.int64], answer: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Finds the tokens to keep, so that at most `length` are left, the answer among them.

    Args:
        places: Where each token stands in the context, [T, 2].
        answer: Tokens of the answer.
        length: Number of tokens that may stay.

    Returns:
        Their numbers; none where the answer has no room, or no token.
    """
    everything = np.arange(len(places))
    context = np.flatnonzero(places[:, 1] > 0)
    room = length - len(places) + (context[-1] - context[0] + 1 if len(context) else 0)
    if not len(answer) or np.ptp(answer) >= room:
        return everything[:0]
    if len(places) <= length:
        return everything
    latest, centred = context[-1] + 1 - room, (answer[0] + answer[-1] + 1 - room) / 2
    starts = np.append(np.arange(context[0], latest, max(1, room // 2)), latest)
    holding = starts[(starts <= answer[0]) & (answer[-1] < starts + room)]
    if not len(holding):  # an answer of more than half a window
        holding = np.clip([int(centred)], max(context[0], answer[-1] + 1 - room), min(latest, answer[0]))
    start = holding[np.abs(holding - centred).argmin()]
    outside = (everything < context[0]) | (everything > context[-1])
    return everything[outside | ((everything >= start) & (everything < start + room))]
