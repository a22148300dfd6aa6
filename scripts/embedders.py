"""What sentence embedders are worth beside each other: relatedness of pairs, retrieval of texts, size.

    python scripts/embedders.py sentence-transformers/all-MiniLM-L6-v2 runs/minilm-embeddings \\
        --texts agnews/test.parquet --pairs sick/test.parquet --columns premise hypothesis relatedness

Prints one line a model:

- Spearman: rank correlation of the cosines of pairs with their scores.
- recall@10: the first half of a text looks for the second half of the same text among all second halves, and finds it
  among the 10 nearest. Texts are parted between words.

`scripts/in_turns.py` says how fast they are.
"""

import argparse
import copy
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset, load_dataset
from scipy.stats import spearmanr
from torch.nn.functional import normalize

from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.checkpoints.load import load_config, load_weights
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.data.columns import full_column
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of

AT_ONCE = 32


class Embedder:
    """A stored model with its tokenizer, and the task that makes it read texts."""

    def __init__(self, name: str) -> None:
        config, tokenizer = load_config(name), load_processor("AutoTokenizer", name)
        self.model = load_weights("AutoModel", name, dtype=torch.float32).eval()
        self.bytes_each = getattr(config.dtype, "itemsize", 4)  # of a weight, as stored
        config.architectures = [type(self.model).__name__]
        settings = TaskConfig(type="sentence_embedding", dataset=DatasetConfig(path="in-memory"))
        self.task: Task = build_task(settings, copy.deepcopy(tokenizer), config)

    @cached_property
    def parameters(self) -> int:
        """Counts all parameters."""
        return int(count_parameters(self.model)["parameters"])

    @torch.inference_mode()
    def read(self, pairs: Dataset) -> torch.Tensor:
        """Embeds the texts of columns `text` and `text_pair`, [2, N, D], of unit length.

        Every text is read once, among others of its length.
        """
        columns = [list(pairs[column]) for column in ("text", "text_pair")]
        place = {text: number for number, text in enumerate(dict.fromkeys(columns[0] + columns[1]))}
        encoded = self.task.encode(Dataset.from_dict({"text": list(place)}))
        order = np.argsort(self.task.lengths(encoded), kind="stable")
        batches = batches_of(self.task, encoded.select(order), AT_ONCE)
        sorted_by_length = torch.cat([self.task.readout(self.model, batch).outputs[:, 0] for batch in batches])
        embeddings = normalize(sorted_by_length[np.argsort(order)], dim=-1)
        return torch.stack([embeddings[[place[text] for text in column]] for column in columns])


def main() -> None:
    """Parses, embeds, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or Hub names of embedders")
    parser.add_argument("--texts", help="parquet file with texts for retrieval")
    parser.add_argument("--column", default="text", help="its column")
    parser.add_argument("--pairs", help="parquet file with pairs of texts and scores")
    parser.add_argument("--columns", nargs=3, default=["sentence1", "sentence2", "score"], help="its columns")
    parser.add_argument("--examples", type=int, default=2000, help="how many of each, from the first on")
    parser.add_argument("--nearest", type=int, default=10, help="how many may be nearer")
    arguments = parser.parse_args()
    texts = halves(first(arguments.texts, [arguments.column], arguments.examples)[0]) if arguments.texts else None
    pairs = first(arguments.pairs, arguments.columns, arguments.examples) if arguments.pairs else None
    for name in arguments.models:
        embedder = Embedder(name)
        said = [f"{embedder.parameters / 1e6:.2f}M", f"{embedder.parameters * embedder.bytes_each / 1e6:.1f} MB"]
        if pairs:
            said.append(f"Spearman {relatedness(embedder, *pairs):.4f}")
        if texts:
            query, answer = embedder.read(texts)
            said.append(f"recall@{arguments.nearest} {recall(query, answer, arguments.nearest):.4f}")
        print(f"{name}: {', '.join(said)}", flush=True)


def first(file: str, columns: Sequence[str], count: int) -> list[list]:
    """Reads the first rows of some columns of a parquet file, a list a column."""
    dataset = load_dataset("parquet", data_files=file, split="train")
    return [full_column(dataset, column, "train").to_pylist()[:count] for column in columns]


def halves(texts: Sequence[str]) -> Dataset:
    """Parts texts of two words or more in the middle; columns `text` and `text_pair`."""
    words = [text.split() for text in texts]
    parted = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in words if len(row) > 1]
    first, second = zip(*parted, strict=True)
    return Dataset.from_dict({"text": list(map(" ".join, first)), "text_pair": list(map(" ".join, second))})


def relatedness(embedder: Embedder, texts: Sequence[str], others: Sequence[str], scores: Sequence[float]) -> float:
    """Measures the rank correlation of the cosines of pairs with their scores."""
    first, second = embedder.read(Dataset.from_dict({"text": texts, "text_pair": others}))
    return float(spearmanr((first * second).sum(1).numpy(), scores).statistic)


def recall(first: torch.Tensor, second: torch.Tensor, nearest: int) -> float:
    """Measures for how many queries fewer than `nearest` others have a larger cosine than their own answer.

    Args:
        first: Queries, [N, D].
        second: Their answers, [N, D].
        nearest: How many are looked at.
    """
    cosines = first @ second.T
    nearer = (cosines > cosines.diagonal().unsqueeze(1)).sum(1)
    return float((nearer < nearest).float().mean())


if __name__ == "__main__":
    main()
