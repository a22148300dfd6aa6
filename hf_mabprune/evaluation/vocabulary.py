"""What cutting a vocabulary changes by itself, in what both vocabularies have in common.

Losses of tokens cannot be compared across vocabularies. Bits can: b = sum over tokens of -log2 p(token) / bytes of the
text that they spell (Gao et al. 2020, arXiv 2101.00027, section 3.1).
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.evaluation.figures import VocabularyFigures
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of
from hf_mabprune.progress import stage
from hf_mabprune.session import Session
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import NO_TARGET, Readout
from hf_mabprune.tasks.sampling import batches_of, encode_sample, evaluation_batches
from hf_mabprune.vocabulary import CutVocabulary


@stage("vocabulary")
def vocabulary_figures(session: Session, cut: CutVocabulary, dense: Evaluation) -> VocabularyFigures:
    """Measures the model as it came beside that without some tokens.

    Args:
        session: Session of the run.
        cut: What was cut.
        dense: The model without these tokens, on the test split.
    """
    parameters = count_parameters(cut.whole)["parameters"], session.totals["parameters"]
    found = _in_bits(session, cut, dense) if session.task.predicts_tokens else _in_pairs(session, cut)
    return VocabularyFigures(cut.corpus, cut.tokens, parameters, *found)


def _in_bits(session: Session, cut: CutVocabulary, dense: Evaluation) -> tuple[str, tuple[float, float], None]:
    """Measures language models: each on its own tokens of the test split."""
    theirs = evaluation_batches(session.settings.task, cut.task, cut.test, session.settings.seed)
    whole = evaluate(forward_of(cut.whole, cut.task), cut.task, theirs, session.accelerator, intervals=False)
    own = bits_per_byte(dense, session.task, session.batches["test"])
    return "bits per byte", (bits_per_byte(whole, cut.task, theirs), own), None


def _in_pairs(session: Session, cut: CutVocabulary) -> tuple[str, tuple[float, float], float]:
    """Measures other models: what both say of the same examples, in the order of the split."""
    name, tasks, settings = session.task.main_metric, (cut.task, session.task), session.settings
    encoded = [encode_sample(task, cut.test, settings.task.evaluation_examples, settings.seed) for task in tasks]
    theirs, own = (batches_of(task, some, settings.task.batch_size) for task, some in zip(tasks, encoded, strict=True))

    def as_it_came(number: int, batch: Batch) -> Readout:
        return cut.task.readout(cut.whole, theirs[number].to(session.accelerator.device))

    whole = evaluate(as_it_came, cut.task, theirs, session.accelerator, intervals=False)
    plain = forward_of(session.dense, session.task)
    small = evaluate(plain, session.task, own, session.accelerator, as_it_came, intervals=False)
    return name, (whole.metrics[name], small.metrics[name]), float(small.kl.mean())


def bits_per_byte(evaluation: Evaluation, task: Task, batches: Sequence[Batch]) -> float:
    """Gives the bits that a language model needs for a byte of the text that it predicts.

    Args:
        evaluation: The model on the batches.
        task: Task of the model, with its tokenizer.
        batches: The batches.
    """
    nats = float((evaluation.scores.losses * evaluation.scores.positions).sum())
    return nats / math.log(2) / sum(bytes_predicted(task, batch) for batch in batches)


def bytes_predicted(task: Task, batch: Batch) -> int:
    """Counts the bytes of the text that the targets of a batch spell, without special tokens."""
    labels = batch[LABELS]
    targets = task.read(torch.zeros(*labels.shape, 1), batch).targets
    rows = [row[row != NO_TARGET].tolist() for row in targets]
    tokenizer = cast(PreTrainedTokenizerBase, task.processor)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return sum(len(text.encode()) for text in texts)
