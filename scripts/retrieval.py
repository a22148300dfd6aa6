"""Recall of sentence embedders: the first half of a text looks for the second half of the same text among all texts.

    python scripts/retrieval.py sentence-transformers/all-MiniLM-L6-v2 runs/minilm-embeddings --data test.parquet

Halves are parted between words. Each model says for how many texts the second half is among the 10 nearest of all.
"""

import argparse
import copy
from collections.abc import Sequence

import torch
from datasets import Dataset, load_dataset
from torch.nn.functional import normalize

from hf_mabprune.checkpoints.load import load_config, load_processor, load_weights
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.data.columns import full_column
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of


def main() -> None:
    """Parses, embeds, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or Hub names of embedders")
    parser.add_argument("--data", required=True, help="parquet file with the texts")
    parser.add_argument("--column", default="text", help="column of the texts")
    parser.add_argument("--examples", type=int, default=2000, help="how many texts, from the first on")
    parser.add_argument("--nearest", type=int, default=10, help="how many may be nearer")
    arguments = parser.parse_args()
    dataset = load_dataset("parquet", data_files=arguments.data, split="train")
    pairs = halves(full_column(dataset, arguments.column, "train").to_pylist()[: arguments.examples])
    for name in arguments.models:
        first, second = embeddings(name, pairs)
        found = recall(first, second, arguments.nearest)
        print(f"{name}: recall@{arguments.nearest} {found:.4f} on {len(first):,} texts")


def halves(texts: Sequence[str]) -> Dataset:
    """Parts texts of two words or more in the middle; columns `text` and `text_pair`."""
    words = [text.split() for text in texts]
    parted = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in words if len(row) > 1]
    first, second = zip(*parted, strict=True)
    return Dataset.from_dict({"text": list(map(" ".join, first)), "text_pair": list(map(" ".join, second))})


@torch.inference_mode()
def embeddings(name: str, pairs: Dataset) -> torch.Tensor:
    """Embeds the texts of both columns with a stored model, [2, N, D], of unit length."""
    config = load_config(name)
    tokenizer = load_processor("AutoTokenizer", name)
    model = load_weights("AutoModel", name, dtype=torch.float32).eval()
    config.architectures = [type(model).__name__]
    settings = TaskConfig(type="sentence_embedding", dataset=DatasetConfig(path="in-memory"))
    task: Task = build_task(settings, copy.deepcopy(tokenizer), config)
    batches = batches_of(task, task.encode(pairs), 32)
    outputs = [task.readout(model, batch).outputs for batch in batches]
    return normalize(torch.cat(outputs).transpose(0, 1), dim=-1)


def recall(first: torch.Tensor, second: torch.Tensor, nearest: int) -> float:
    """Measures for how many queries fewer than `nearest` others have a larger cosine than their own answer.

    Args:
        first: Queries, [N, D].
        second: Their answers, [N, D].
    """
    cosines = first @ second.T
    nearer = (cosines > cosines.diagonal().unsqueeze(1)).sum(1)
    return float((nearer < nearest).float().mean())


if __name__ == "__main__":
    main()
