"""What sentence embedders are worth beside each other: relatedness of pairs, retrieval of texts, size and speed.

    python scripts/embedders.py sentence-transformers/all-MiniLM-L6-v2 runs/minilm-embeddings --speed \\
        --texts agnews/test.parquet --pairs sick/test.parquet --columns premise hypothesis relatedness

Prints one line a model, the first one being what the others are compared with:

- Spearman: rank correlation of the cosines of pairs with their scores.
- recall@10: the first half of a text looks for the second half of the same text among all second halves, and finds it
  among the 10 nearest. Texts are parted between words.
- times as fast: one forward pass of random tokens, 1 x 32 and 32 x 128, medians of turns with the first model.
"""

import argparse
import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from datasets import Dataset, load_dataset
from scipy.stats import spearmanr
from torch.nn.functional import normalize

from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.checkpoints.load import load_config, load_processor, load_weights
from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.data.columns import full_column
from hf_mabprune.evaluation.latency import measure_latency
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of

SHAPES = ((1, 32), (32, 128))  # texts, tokens
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
        """Embeds the texts of columns `text` and `text_pair`, [2, N, D], of unit length."""
        batches = batches_of(self.task, self.task.encode(pairs), AT_ONCE)
        outputs = [self.task.readout(self.model, batch).outputs for batch in batches]
        return normalize(torch.cat(outputs).transpose(0, 1), dim=-1)

    def tokens(self, texts: int, length: int) -> Batch:
        """Makes a batch of random tokens without padding."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.model.config.vocab_size, (texts, 1, length), generator=generator)
        return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids), LABELS: torch.zeros(texts)})


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
    parser.add_argument("--speed", action="store_true", help="measure speed beside the first model")
    arguments = parser.parse_args()
    texts = halves(first(arguments.texts, [arguments.column], arguments.examples)[0]) if arguments.texts else None
    pairs = first(arguments.pairs, arguments.columns, arguments.examples) if arguments.pairs else None
    dense: Embedder | None = None
    for name in arguments.models:
        embedder = Embedder(name)
        dense = dense or embedder
        said = [f"{embedder.parameters / 1e6:.2f}M", f"{embedder.parameters * embedder.bytes_each / 1e6:.1f} MB"]
        if pairs:
            said.append(f"Spearman {relatedness(embedder, *pairs):.4f}")
        if texts:
            query, answer = embedder.read(texts)
            said.append(f"recall@{arguments.nearest} {recall(query, answer, arguments.nearest):.4f}")
        if arguments.speed and embedder is not dense:
            times = [(*shape, speed(dense, embedder, *shape)) for shape in SHAPES]
            said += [f"{ratio:.2f} times as fast on {rows} x {tokens}" for rows, tokens, ratio in times]
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


def speed(dense: Embedder, small: Embedder, texts: int, length: int) -> float:
    """Measures how many times as fast a model is, the median over turns."""
    batch = small.tokens(texts, length)  # of tokens that both have
    before, after = measure_latency([dense.model, small.model], dense.task, batch, repeats=11)
    return before / after


if __name__ == "__main__":
    main()
