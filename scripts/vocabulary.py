"""What a model loses with the tokens that some texts do not use: size, and what becomes of other texts.

    python scripts/vocabulary.py google/gemma-3-270m --keep train.parquet --held-out test.parquet

Tokenizer and model are cut, saved, and read back by AutoTokenizer and AutoModel. Both tokenizers encode and decode the
held-out texts; both models read the first of them, for bits per byte or, where no tokens are predicted, for the
divergence of what they say.
"""

import argparse
import copy
import tempfile
from collections.abc import Collection, Sequence
from itertools import chain, islice
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.checkpoints.load import load_config, load_weights
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.data.corpus import texts_of
from hf_mabprune.evaluation.quality import Evaluation, Forward, evaluate, forward_of
from hf_mabprune.evaluation.vocabulary import bits_per_byte
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.surgery.tokenizer import check_tokenizer, cut_tokenizer
from hf_mabprune.surgery.vocabulary import rows_of, without_tokens
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.lookup import build_task, task_for_model
from hf_mabprune.tasks.sampling import batches_of
from hf_mabprune.vocabulary import new_ids, tokens_in

AT_ONCE = 16  # texts, or windows, in a batch


class Reader:
    """A model with its tokenizer, and the task of its head, which makes it read texts."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        given = TaskConfig(dataset=DatasetConfig(path="in-memory"))
        self.model, self.tokenizer = model, tokenizer
        self.task: Task = build_task(given, copy.deepcopy(tokenizer), model.config, type(model).__name__)

    def batches(self, texts: Sequence[str]) -> Sequence[Batch]:
        """Makes texts into batches, in their order; labels, where a task asks for any, say nothing."""
        rows = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
        return batches_of(self.task, self.task.encode(rows), AT_ONCE)

    def on(self, batches: Sequence[Batch], other: Forward | None = None) -> Evaluation:
        """Reads batches, beside another model where one is given."""
        plain = forward_of(self.model, self.task)
        return evaluate(plain, self.task, batches, make_accelerator(), other, intervals=False)


def main() -> None:
    """Parses, cuts, reads back, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name")
    parser.add_argument("--keep", nargs="+", required=True, help="files of texts whose tokens stay")
    parser.add_argument("--held-out", nargs="+", required=True, help="files of other texts")
    parser.add_argument("--texts", type=int, default=10_000, help="how many of these are encoded and decoded")
    parser.add_argument("--read", type=int, default=200, help="how many of these the models read")
    arguments = parser.parse_args()
    config = load_config(arguments.model)
    auto_class, stored = TASKS.get(task_for_model(config)).auto_class, config.dtype or torch.float32
    model = load_weights(auto_class, arguments.model, dtype=torch.float32).eval()
    whole = Reader(model, check_tokenizer(load_processor("AutoTokenizer", arguments.model)))
    small = cut(whole, tokens_in(copy.deepcopy(whole.tokenizer), arguments.keep), stored)
    sizes = [count_parameters(each.model)["parameters"] for each in (whole, small)]
    print(f"tokens: {rows_of(whole.model):,} -> {rows_of(small.model):,}")
    print("parameters: {:,} -> {:,}".format(*sizes))
    print("MB of weights: {:.1f} -> {:.1f}".format(*(size * stored.itemsize / 1e6 for size in sizes)))
    texts = first(arguments.keep, arguments.texts)
    print("of the texts that decide:", compared(texts, whole.tokenizer, small.tokenizer), flush=True)
    texts = first(arguments.held_out, arguments.texts)
    print("of the held-out texts:", compared(texts, whole.tokenizer, small.tokenizer), flush=True)
    print(read(texts[: arguments.read], whole, small))


def cut(whole: Reader, used: Collection[int], stored: torch.dtype) -> Reader:
    """Cuts model and tokenizer, saves both, and reads them back with nothing but transformers."""
    keep, ids = new_ids(whole.model, whole.tokenizer, used)
    small, smaller = without_tokens(whole.model, keep, ids), cut_tokenizer(whole.tokenizer, ids)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(small, Path(folder), smaller, stored, whole.task.side_files())
        loader = getattr(transformers, whole.task.auto_class)
        again = loader.from_pretrained(folder, dtype=torch.float32).eval()
        return Reader(again, transformers.AutoTokenizer.from_pretrained(folder))


def first(files: Sequence[str], count: int) -> list[str]:
    """Reads so many texts of some files that are not empty."""
    found = chain.from_iterable(chain.from_iterable(map(texts_of, files)))
    return list(islice(filter(str.strip, found), count))


def compared(texts: Sequence[str], whole: PreTrainedTokenizerBase, smaller: PreTrainedTokenizerBase) -> str:
    """Encodes and decodes texts by two tokenizers, and says what differs."""
    plain = {"verbose": False, "truncation": False, "padding": False}
    new, other, same, counts = 0, 0, 0, [0, 0]
    for text in texts:
        before, after = whole(text, **plain)["input_ids"], smaller(text, **plain)["input_ids"]
        unknown = [each.unk_token_id in found for each, found in ((whole, before), (smaller, after))]
        new += unknown == [False, True]
        other += whole.decode(before) != smaller.decode(after)
        same += whole.convert_ids_to_tokens(before) == smaller.convert_ids_to_tokens(after)
        counts = [counts[0] + len(before), counts[1] + len(after)]
    return (
        f"{same:,} of {len(texts):,} have the same tokens, {new:,} an unknown one where there was none, {other:,} are "
        f"decoded to another text; tokens {counts[0]:,} -> {counts[1]:,}"
    )


def read(texts: Sequence[str], whole: Reader, small: Reader) -> str:
    """Lets both models read texts, and says how well they predict them, or how far apart what they say is."""
    theirs, own = whole.batches(texts), small.batches(texts)
    if whole.task.predicts_tokens:
        bits = [
            bits_per_byte(reader.on(batches), reader.task, batches)
            for reader, batches in ((whole, theirs), (small, own))
        ]
        return "bits per byte on {:,} held-out texts: {:.4f} -> {:.4f}".format(len(texts), *bits)
    apart = small.on(own, lambda number, _: whole.task.readout(whole.model, theirs[number])).kl
    return f"divergence on {len(texts):,} held-out texts: mean {apart.mean():.3g}, at most {apart.max():.3g}"


if __name__ == "__main__":
    main()
