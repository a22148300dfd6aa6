"""Choice of the text that goes best with a context, among several."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.choice_task import ChoiceTask
from hf_mabprune.tasks.readout import Readout


@TASKS.register("multiple_choice")
@dataclass(kw_only=True)
class MultipleChoice(ChoiceTask):
    """Predicts the right one of several texts. Roles: `context`, `choices` and `label`.

    `choices` are a list of texts, as many in every row of a split, or the texts beside their names, as in
    `{text: [...], label: [A, B, C, D]}`. `label` is the index of the right one from 0 on, as a number or written out,
    or its name. Each choice is framed with the context as a pair of texts, cut at `max_length` tokens (256 by default,
    or what tokenizer and model can take), and padded on the right to the longest of a batch.

    The model reads [B, choices, T] and gives one logit a choice; an example is the whole row.
    """

    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    pipeline_tag: ClassVar[str | None] = "multiple-choice"
    heads: ClassVar[tuple[str, ...]] = ("ForMultipleChoice",)
    roles: ClassVar[tuple[str, ...]] = ("context", "choices", "label")
    usual_names: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("question", "question_stem", "ctx", "context", "sent1", "startphrase"),
        ("choices", "endings", "options"),
        ("label", "labels", "answerKey", "answer"),
    )
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes the one position of each example a dimension, [B, choices] -> [B, 1, choices]."""
        return Readout(outputs=logits[:, None], targets=batch["labels"][:, None])
