"""Answers of a language model: predict every token of an answer from the question and the tokens before it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_mabprune.data.columns import RowError
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.decoder_task import DecoderTask
from hf_mabprune.tasks.readout import NO_TARGET

QUESTIONS = ("question", "prompt", "instruction")
ANSWERS = ("answer", "completion", "response", "output")
PROMPT = "Question: {}\nAnswer:"


@TASKS.register("answer")
@dataclass(kw_only=True)
class Answer(DecoderTask):
    """Predicts the tokens of an answer. Roles: `question` and `answer`. Has to be asked for: task.type: answer.

    An example is one row: `Question: ...`, a new line, `Answer: ...`, and the tokenizer's end-of-sequence token if it
    has one. The loss, the KL divergence and the perplexity count the tokens of the answer and the end alone. What is
    longer than `max_length` tokens (512 by default, or what the model can take) is cut at the end.
    """

    roles: ClassVar[tuple[str, ...]] = ("question", "answer")
    default_length: ClassVar[int] = 512
    rows_are_examples: ClassVar[bool] = True
    asked_for_by_name: ClassVar[bool] = True

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists all combinations of the usual names."""
        return [{"question": question, "answer": answer} for question in QUESTIONS for answer in ANSWERS]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, and missing columns or values."""
        columns = self.find_columns(dataset, split)
        for role in self.roles:
            self.check_texts(dataset, columns[role], split)

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: `input_ids`, [T], and `prompt`, how many of its tokens are before the answer.

        Raises:
            ValueError: If a question leaves no room for its answer, or an answer has no token.
        """
        columns = self.find_columns(dataset, "data")
        texts = [columns[role] for role in self.roles]
        tokenizer, length = self.processor, self.length
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

        def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
            prompts = tokenizer([PROMPT.format(text) for text in rows[texts[0]]], verbose=False)["input_ids"]
            answers = [f" {text}" for text in rows[texts[1]]]
            answers = tokenizer(answers, add_special_tokens=False, verbose=False)["input_ids"]
            whole = [prompt + answer + end for prompt, answer in zip(prompts, answers, strict=True)]
            return {"input_ids": [ids[:length] for ids in whole], "prompt": [len(prompt) for prompt in prompts]}

        encoded = dataset.select_columns(texts).map(tokenise, batched=True, remove_columns=texts, desc="Tokenising")
        self.check_ids(encoded)
        targets = np.array([len(ids) for ids in encoded["input_ids"]]) - np.array(encoded["prompt"])
        bare = np.flatnonzero(targets < 1)
        if len(bare):
            row = int(bare[0])
            raise RowError(
                f"an answer must have at least one token within {length}, got none in row {{row}}, whose question "
                f"takes {encoded[row]['prompt']}; raise max_length, or remove such rows",
                row,
            )
        return encoded

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs and labels, [B, T] each, padded on the right; labels are -100 where no answer is."""
        asked = [(example["input_ids"], example["prompt"]) for example in examples]
        return self.with_targets(
            [{"input_ids": ids, LABELS: [NO_TARGET] * prompt + ids[prompt:]} for ids, prompt in asked]
        )
