"""The step before a search that cuts a vocabulary: the dense model of a run becomes one without the tokens that a
corpus does not use.

A search, its refits and its report compare with that model: what it says and what a pruned one says are of the same
tokens, which no divergence could be without. What the step itself costs is measured beside it
(`evaluation.vocabulary`), in what both vocabularies have in common: bytes of text, classes, embeddings.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune.arms import Ints
from hf_mabprune.checkpoints.load import HALF_TOLERANCE, TOLERANCE
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.config import PruneConfig, VocabularyConfig
from hf_mabprune.data.columns import column_of, is_list
from hf_mabprune.data.corpus import texts_of
from hf_mabprune.progress import stage
from hf_mabprune.surgery.tokenizer import check_tokenizer, cut_tokenizer, kept_tokens
from hf_mabprune.surgery.vocabulary import named_ids, rows_of, without_tokens
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import IDS, LABELS
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import encode_sample

TRIED = 4  # examples that both models read


@dataclass(frozen=True)
class CutVocabulary:
    """A model without some tokens, and the one that it was made from.

    Attributes:
        model: Without them.
        processor: Tokenizer of that model.
        whole: The model as it came.
        task: Task of the model as it came, with its own tokenizer.
        test: Test split, which each of the two reads in tokens of its own.
        tokens: Rows of the embeddings before and after.
        corpus: What decided which tokens stay, in words.
    """

    model: PreTrainedModel
    processor: PreTrainedTokenizerBase
    whole: PreTrainedModel = field(repr=False)
    task: Task = field(repr=False)
    test: Dataset = field(repr=False)
    tokens: tuple[int, int]
    corpus: str


@stage("vocabulary")
def cut_vocabulary(
    settings: PruneConfig, model: PreTrainedModel, processor: Processor, splits: Mapping[str, Dataset]
) -> CutVocabulary:
    """Cuts the tokens that the settings do not keep out of a model and its tokenizer.

    Args:
        settings: Run settings, with `prune.vocabulary`.
        model: Dense model, in evaluation mode; it is not changed.
        processor: Its tokenizer; it is not changed.
        splits: Split -> data set.

    Raises:
        ValueError: If there is no fast tokenizer, or the vocabulary of the model cannot be cut.
        OSError: If a file of texts cannot be read.
    """
    asked = settings.prune.vocabulary or VocabularyConfig()
    tokenizer, rows = check_tokenizer(processor), rows_of(model)
    reader = copy.deepcopy(tokenizer)  # calls leave their truncation and padding in it
    task = build_task(settings.task, reader, model.config, type(model).__name__)
    encoded = encode_sample(task, splits["calibration"], None, settings.seed)
    counts = tokens_in(reader, asked.files()) if asked.files() else _in_examples(task, encoded)
    keep, ids = new_ids(model, tokenizer, {token for token, count in counts.items() if count >= asked.min_count})
    small, smaller = without_tokens(model, keep, ids), cut_tokenizer(tokenizer, ids)
    _refuse_other_outputs(task, encoded, model, small, keep)
    words = f"of {', '.join(asked.files())}" if asked.files() else "of the calibration split"
    often = f" that occur {asked.min_count} times or more" if asked.min_count > 1 else ""
    return CutVocabulary(small, smaller, model, task, splits["test"], (rows, len(keep)), f"{words}{often}")


def with_vocabulary_of(
    stored: Processor, model: PreTrainedModel, processor: Processor
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Cuts a model and its tokenizer to the tokens that another tokenizer has.

    Args:
        stored: That tokenizer.
        model: Model with the whole vocabulary.
        processor: Its tokenizer.

    Raises:
        ValueError: If one of them is no fast tokenizer, or the vocabulary of the model cannot be cut.
    """
    tokenizer, names = check_tokenizer(processor), check_tokenizer(stored).get_vocab().keys()
    keep, ids = new_ids(model, tokenizer, {number for name, number in tokenizer.get_vocab().items() if name in names})
    return without_tokens(model, keep, ids), cut_tokenizer(tokenizer, ids)


def new_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, used: Iterable[int]
) -> tuple[Ints, dict[int, int]]:
    """Finds what stays with used tokens, in model and tokenizer.

    Args:
        model: Supported model.
        tokenizer: Its fast tokenizer.
        used: Ids of tokens that are used.

    Returns:
        Rows that stay, [V], and id -> new id of all tokens that stay, those that the model has no row for too.
    """
    rows, named = rows_of(model), named_ids(model)
    tokens = kept_tokens(tokenizer, {*used, *named})
    kept = [token for token in tokens if token < rows] + sorted(named - {*tokens})
    beyond = [token for token in tokens if token >= rows]
    return np.array(kept), {token: number for number, token in enumerate([*kept, *beyond])}


def tokens_in(tokenizer: PreTrainedTokenizerBase, files: Sequence[str]) -> Counter[int]:
    """Counts the tokens of all texts of some files.

    Args:
        tokenizer: Any tokenizer; truncation and padding of it are turned off.
        files: As those of `prune.vocabulary.keep`.

    Raises:
        OutsideError: If a file cannot be read.
    """
    counts: Counter[int] = Counter()
    for file in files:
        for texts in filter(None, texts_of(file)):
            for ids in tokenizer(texts, verbose=False, truncation=False, padding=False)["input_ids"]:
                counts.update(ids)
    return counts


def _in_examples(task: Task, encoded: Dataset) -> Counter[int]:
    """Counts the tokens of encoded examples, and those that are to be predicted."""
    counts: Counter[int] = Counter()
    for name in (*IDS, *((LABELS,) if task.predicts_tokens else ())):
        if name in encoded.column_names:
            flat = column_of(encoded, name).combine_chunks().flatten()
            while is_list(flat.type):  # several sequences a row
                flat = flat.flatten()
            found, times = np.unique(flat.to_numpy(zero_copy_only=False), return_counts=True)
            counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
    return counts


@torch.inference_mode()
def _refuse_other_outputs(
    task: Task, encoded: Dataset, whole: PreTrainedModel, small: PreTrainedModel, keep: Ints
) -> None:
    """Refuses a model that says something else without tokens that it is not given: one that reads ids elsewhere than
    in its embeddings.

    Raises:
        ValueError: With the difference.
    """
    batch = task.collate([encoded[number] for number in range(min(TRIED, len(encoded)))])
    inputs, rows = task.few_inputs(whole, batch), torch.from_numpy(keep).to(whole.device)
    places = torch.zeros(rows_of(whole), dtype=torch.long, device=whole.device)
    places[rows] = torch.arange(len(rows), device=whole.device)
    moved = {name: places[inputs[name]] for name in IDS if name in inputs}  # the first row for a token that goes
    stays = {name: rows[tensor] for name, tensor in moved.items()}
    before, after = whole(**inputs | stays)[0], small(**inputs | moved)[0]
    if before.shape != after.shape:  # logits of tokens
        before = before[..., rows]
    difference = float((before - after).abs().max())
    if not difference <= TOLERANCE.get(whole.dtype, HALF_TOLERANCE):
        raise ValueError(
            f"prune.vocabulary: without tokens that it is not given, a {whole.config.model_type} says something else "
            f"(by {difference:.2g}): leave prune.vocabulary out"
        )
