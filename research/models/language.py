"""Holds what the language models share: their data and tokenizer, and how they are measured."""

import argparse

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from research.models.training import command_line, read_split

LENGTH = 128
VOCABULARY = 4096
END = "<|endoftext|>"


def read_windows(
    data: str, name: str | None, more: str | None, vocabulary: int = VOCABULARY
) -> tuple[PreTrainedTokenizerFast, dict[str, torch.Tensor]]:
    """Trains a tokenizer on the training split, and cuts every split into windows.

    Args:
        data: Folder of parquet files with a column `text`, or a data set of the Hub.
        name: Configuration of the data set of the Hub.
        more: Second source, whose training split is added to that of `data`; None for none.
        vocabulary: Number of tokens.

    Returns:
        The tokenizer, and split -> windows, [N, T], of train, validation and test.
    """
    texts = {split: list(read_split(data, name, split)["text"]) for split in ("train", "validation", "test")}
    if more:
        texts["train"] += read_split(more, None, "train")["text"]
    tokenizer = train_tokenizer(texts["train"], vocabulary)
    return tokenizer, {split: cut_windows(tokenizer, lines) for split, lines in texts.items()}


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with an end-of-text token, which it never adds by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def cut_windows(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Joins texts and cuts them into windows, [N, T]; what is left at the end is dropped.

    A text is a document, which the end-of-text token closes, unless it is empty or ends in a newline: then it is a
    line of running text, as WikiText's are.
    """
    flat: list[int] = []
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        flat += ids if not text or text.endswith("\n") else [*ids, tokenizer.eos_token_id]
    count = len(flat) // LENGTH
    return torch.tensor(flat[: count * LENGTH]).reshape(count, LENGTH)


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Measures the mean cross-entropy, in nats, of all tokens of a window but the first.

    Args:
        logits: Logits, [B, T, V].
        ids: Tokens, [B, T].
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.inference_mode()
def perplexity(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Measures the perplexity of windows, [N, T], each read by itself."""
    batches = ids.split(32)
    losses = [next_token_loss(model(input_ids=batch, use_cache=False).logits, batch) * len(batch) for batch in batches]
    return (torch.stack(losses).sum() / len(ids)).exp().item()


def language_command_line(description: str | None) -> argparse.ArgumentParser:
    """Makes the parser of a language model's recipe."""
    parser = command_line(description)
    parser.add_argument("--data", default="Salesforce/wikitext", help="folder of parquet files, or Hub data set")
    parser.add_argument("--name", default="wikitext-2-raw-v1", help="configuration of a Hub data set")
    parser.add_argument("--more", help="second source, whose train split is added, e.g. roneneldan/TinyStories")
    return parser
