"""Bits per byte of a model that finds every token equally likely."""

import math

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from hf_mabprune.evaluation.quality import evaluate, forward_of
from hf_mabprune.evaluation.vocabulary import bits_per_byte, bytes_predicted
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.sampling import batches_of
from tests.small_tokenizers import small_tokenizer, texts
from tests.tasks.tiny_tasks import llama, task_of


def test_bits_per_byte_are_those_of_all_tokens_over_the_bytes_that_they_spell() -> None:
    tokenizer = small_tokenizer("byte-level")
    model = llama(vocab_size=len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    task = task_of(model, tokenizer)
    batches = batches_of(task, task.encode(Dataset.from_dict({"text": texts(40)})), 4)
    found = evaluate(forward_of(model, task), task, batches, Accelerator(cpu=True), intervals=False)
    predicted = [row[1:].tolist() for batch in batches for row in batch["labels"]]
    size = sum(len(tokenizer.decode(row, skip_special_tokens=True).encode()) for row in predicted)
    bits = sum(map(len, predicted)) * math.log2(len(tokenizer))
    assert bits_per_byte(found, task, batches) == pytest.approx(bits / size)


def test_special_tokens_spell_nothing_and_padding_is_not_read() -> None:
    tokenizer = small_tokenizer("byte-level")
    task = task_of(llama(vocab_size=len(tokenizer)), tokenizer)
    ids = torch.tensor([[tokenizer.cls_token_id, *tokenizer.encode("ka és", add_special_tokens=False)]])
    labels = torch.cat([ids, torch.tensor([[tokenizer.sep_token_id, -100]])], 1)
    assert bytes_predicted(task, Batch(input_ids=labels, labels=labels)) == len("ka és".encode())
