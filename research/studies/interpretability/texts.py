"""Text classifiers of the Hub as subjects of the study, and the similarity of their inputs.

The score of Zimmermann et al. is about images. For texts this is our adaptation: the cosine of sentence embeddings of
a frozen encoder stands where the similarity of images was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    set_seed,
)

from research.models.training import Recipe, train
from research.studies.interpretability.activations import activations
from research.studies.interpretability.images import DRAW
from research.studies.interpretability.subjects import Subject
from research.studies.interpretability.training import of_epochs

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LENGTH = 64  # tokens
BATCH = 100  # texts a forward pass where nothing is trained


@dataclass(frozen=True)
class Texts:
    """Holds texts and their labels."""

    texts: Sequence[str]
    labels: torch.Tensor


def read_texts(folder: Path, train: int, probes: int, test: int) -> tuple[Texts, Texts, Texts]:
    """Reads train.parquet and test.parquet, with a column of texts and `label`: training, probes and test texts.

    Args:
        folder: Folder of the two files.
        train, probes: Rows drawn from train.parquet, all different texts.
        test: Rows drawn from test.parquet.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file has fewer rows than are asked for.
    """
    rows = _drawn(folder / "train.parquet", train + probes)
    return _texts(rows.iloc[:train]), _texts(rows.iloc[train:]), _texts(_drawn(folder / "test.parquet", test))


def _drawn(path: Path, count: int) -> pd.DataFrame:
    rows = pd.read_parquet(path)
    text = next(name for name in rows if name != "label")
    rows = rows.drop_duplicates(text)
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} different texts, and {count} are asked for")
    return rows.sample(count, random_state=DRAW)


def _texts(rows: pd.DataFrame) -> Texts:
    text = next(name for name in rows if name != "label")
    return Texts(rows[text].tolist(), torch.tensor(rows["label"].to_numpy()))


@dataclass
class TextSubject(Subject):
    """A text classifier that is there already: a folder, or a name on the Hub.

    Attributes:
        model: Name or folder.
        rows, probes, test: Texts that it is trained further on, looked at with and measured on.
        recipe: How it is trained further.
        similarity_name, similarity: See `Subject`.
    """

    model: str
    rows: Texts
    probes: Texts
    test: Texts
    recipe: Recipe
    similarity_name: str
    similarity: torch.Tensor
    _tokenizer: object = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self.model)

    def network(self, seed: int) -> nn.Module:
        """See `Subject.network`; there is one, whatever the seed."""
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(self.model, dtype=torch.float32)
        return model.eval()

    def untrained(self, seed: int) -> nn.Module:
        """See `Subject.untrained`."""
        set_seed(seed)
        model: nn.Module = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(self.model))
        return model.eval()

    def train(self, network: nn.Module, epochs: float, seed: int) -> None:
        """See `Subject.train`."""
        set_seed(seed)

        def loss(rows: torch.Tensor, progress: float) -> torch.Tensor:
            batch = self._encoded([self.rows.texts[row] for row in rows.tolist()])
            return F.cross_entropy(network(**batch).logits, self.rows.labels[rows])

        count = len(self.rows.labels)
        train(network, count, loss, of_epochs(self.recipe, count, epochs))

    @torch.inference_mode()
    def accuracy(self, network: nn.Module) -> float:
        """See `Subject.accuracy`."""
        found = torch.cat([network(**batch).logits.argmax(-1) for batch in self._batches(self.test)])
        return (found == self.test.labels).float().mean().item()

    def activations(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """See `Subject.activations`."""

        def forward(batch: BatchEncoding) -> None:
            network(**batch)

        return activations(network, self._batches(self.probes), forward, lambda batch: batch["attention_mask"])

    def _batches(self, texts: Texts) -> Sequence[BatchEncoding]:
        return [self._encoded(texts.texts[at : at + BATCH]) for at in range(0, len(texts.texts), BATCH)]

    def _encoded(self, texts: Sequence[str]) -> BatchEncoding:
        return encoded(self._tokenizer, texts)


def encoded(tokenizer: object, texts: Sequence[str]) -> BatchEncoding:
    """Makes token ids of texts."""
    assert callable(tokenizer)
    batch: BatchEncoding = tokenizer(
        list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return batch


@torch.inference_mode()
def sentence_similarity(encoder: str, texts: Sequence[str]) -> torch.Tensor:
    """Gives the cosine of the mean-pooled embeddings of any two texts, [P, P].

    Args:
        encoder: Folder or Hub name of a sentence encoder that pools by the mean, as all-MiniLM-L6-v2 does.
        texts: P texts.
    """
    model, tokenizer = (
        AutoModel.from_pretrained(encoder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(encoder),
    )
    parts = []
    for at in range(0, len(texts), BATCH):
        batch = encoded(tokenizer, texts[at : at + BATCH])
        mask = batch["attention_mask"].unsqueeze(-1).float()
        parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    unit = F.normalize(torch.cat(parts), dim=1)
    return unit @ unit.T
