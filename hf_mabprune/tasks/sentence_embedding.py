"""Embedding of sentences: one vector a text, whose direction says what the text means."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import PreTrainedConfig

from hf_mabprune.checkpoints.embedding_files import POOLINGS, EmbeddingFiles
from hf_mabprune.data.columns import RowError, column_of, full_column
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import Readout, wide_dtype
from hf_mabprune.tasks.scores import Scores
from hf_mabprune.tasks.text_task import TEXTS
from hf_mabprune.tasks.token_task import TokenTask, check_padding

COSINE = "cosine"  # the metric that takes no scores
SCORES = ("score", "relatedness_score", "relatedness", "similarity_score", "label")


@dataclass(frozen=True)
class EmbeddingReadout(Readout):
    """Embeddings of unit length; each text of an example counts as a position.

    Attributes:
        outputs: Embeddings e of S texts of each example, [B, S, D]; [A, B, S, D] for `divergence`.
        targets: How alike the two texts of an example are, [B] floating; NaN where nobody says.
    """

    def counted(self) -> torch.Tensor:
        """Counts all texts, [B, S] bool."""
        return torch.ones(self.outputs.shape[:2], dtype=torch.bool, device=self.outputs.device)

    def losses(self) -> torch.Tensor:
        """Gives 0, [B] float64 (float32 on MPS), or NaN where an embedding is not finite: there is no right one, and
        what one is worth is how near it is to the dense model's (`divergence`)."""
        return 0 * self.distribution().sum((1, 2))

    def correct(self) -> torch.Tensor:
        """Gives no number, [B] NaN: texts are more or less alike, not right or wrong."""
        return torch.full_like(self.targets, torch.nan)

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the cosine of the two embeddings of each example that has a score, and the score."""
        scored, embeddings = self._scored(), self.distribution()
        cosines = torch.linalg.vecdot(embeddings[scored, 0], embeddings[scored, -1])
        return cosines, self.targets[scored].to(cosines)

    def answers(self) -> torch.Tensor:
        """Counts one cosine an example that has a score, [B] int64."""
        return self._scored().long()

    def distribution(self) -> torch.Tensor:
        """Gives the embeddings, [B, S, D], in float64 (float32 on MPS)."""
        return self.outputs.to(wide_dtype(self.outputs))

    def divergence(self, dense: Readout, distribution: torch.Tensor | None = None) -> torch.Tensor:
        """Measures |e - e0|^2 / 2, which is 1 - cos(e, e0) for unit lengths, mean over the texts, [B] or [A, B].

        From the difference of the two nothing cancels, however near they are.
        """
        embeddings = dense.distribution() if distribution is None else distribution
        return (self.distribution() - embeddings).square().sum(-1).mean(-1) / 2

    def few_outputs(self) -> bool:
        """Says no: directions are drawn."""
        return False

    def coordinates(self, dense: Readout, samples: int, seed: int) -> Iterator[torch.Tensor]:
        """Gives u = sum_sd r_sd (e - e0)_sd / sqrt(samples * S), [B], for signs r drawn anew each time.

        Signs are independent with mean 0, so that E[r r'] = I and half the sum of the squares over draws is the
        divergence in the mean (Hutchinson 1989), at one backward pass a draw instead of S * D.
        """
        change = self.distribution() - dense.distribution().detach()
        generator = torch.Generator(device=change.device).manual_seed(seed)
        for _ in range(samples):
            signs = torch.randint(2, change.shape, generator=generator, device=change.device) * 2 - 1
            yield (signs * change).sum((1, 2)) / (samples * change.shape[1]) ** 0.5

    def _scored(self) -> torch.Tensor:
        """Tells which examples have a score, [B] bool."""
        return ~self.targets.isnan()


@TASKS.register("sentence_embedding")
@dataclass(kw_only=True)
class SentenceEmbedding(TokenTask):
    """Makes a text into a vector. Roles: `text`, `text_pair` (optional) and `score` (optional), of how alike both are.

    For models of sentence-transformers, whose folder says how token states are pooled, and for plain encoders. The
    checkpoint is a folder of sentence-transformers, with modules and prompts as they were. Embeddings are compared by
    their direction: the divergence from the dense model is 1 - cosine, mean over the texts of a row, and it is what
    stands for the loss too. The metric is the mean cosine with the dense model; where `columns` names a score, the
    rank correlation of cosines with scores.

    Texts are cut at `max_length` tokens, 512 by default or what folder, tokenizer and model can take, and padded on
    the right. The folder's default prompt is put before them, or `prefix`.

    Args:
        prefix: Text before every text; None takes the default prompt of the folder.
        pooling: How a plain encoder's token states are pooled: mean, cls, max or lasttoken; None is mean.
    """

    auto_class: ClassVar[str] = "AutoModel"
    pipeline_tag: ClassVar[str | None] = "sentence-similarity"
    library: ClassVar[str] = "sentence-transformers"
    tags: ClassVar[tuple[str, ...]] = ("sentence-transformers", "sentence-similarity", "feature-extraction")
    heads: ClassVar[tuple[str, ...]] = ("Model",)
    roles: ClassVar[tuple[str, ...]] = ("text", "text_pair", "score")
    default_metrics: ClassVar[tuple[str, ...]] = (COSINE,)
    metric_inputs: ClassVar[dict[str, str]] = {
        "predictions": "predicted",
        "references": "reference",
        "distances": "losses",
    }
    default_length: ClassVar[int] = 512
    rows_are_examples: ClassVar[bool] = True
    takes_plain_text: ClassVar[bool] = True
    predicts_classes: ClassVar[bool] = False
    has_loss: ClassVar[bool] = False
    refits_read_more: ClassVar[bool] = True  # sentences are short, and least squares takes tokens
    loss_name: ClassVar[str] = "distance from the dense model's embeddings, 1 - cosine"
    forward_options: ClassVar[dict[str, Any]] = {"use_cache": False}

    prefix: str | None = None
    pooling: str | None = None
    files: EmbeddingFiles = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_padding(self.processor, self.model_config)
        self.files = self._read_files()
        if "score" in self.columns:
            if "text" in self.columns and "text_pair" not in self.columns:
                raise ValueError("columns names a score, which takes a text_pair beside text: name that too")
            self.metrics = self.metrics or ["spearman"]
        super().__post_init__()

    def _read_files(self) -> EmbeddingFiles:
        """Reads how the model pools, from the folder or the repository that it came from.

        Raises:
            ValueError: For a pooling that is unknown, or that its files say already.
        """
        if self.pooling not in (None, *POOLINGS):
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        commit = getattr(self.model_config, "_commit_hash", None)
        files = EmbeddingFiles.read(self.model_config.name_or_path or "", revision=commit)
        if files is None:
            return EmbeddingFiles.of_encoder(self.pooling or POOLINGS[0], self.model_config.hidden_size)
        if self.pooling not in (None, files.pooling):
            raise ValueError(f"the model's own files say pooling {files.pooling}, got {self.pooling}; leave it out")
        return files

    @classmethod
    def serves(cls, architecture: str, model_config: PreTrainedConfig | None = None) -> bool:
        """Serves models without a head."""
        return super().serves(architecture, model_config) and not architecture.endswith(("HeadModel", "HeadsModel"))

    @property
    def scored(self) -> bool:
        """Tells whether a metric reads scores."""
        return any(metric != COSINE for metric in self.metrics)

    def resolve_length(self, default: int) -> int:
        """See `TokenTask.resolve_length`; at most what the folder of the embedder says, where nobody names one."""
        length = super().resolve_length(default)
        own = self.files.max_length if self.max_length is None else None
        return length if own is None else min(length, own)

    def rehearsal(self) -> Scores:
        """Makes three examples whose cosines are their scores."""
        numbers, ones = np.arange(3) / 2, np.ones(3, dtype=np.int64)
        return Scores(np.zeros(3), ones, numbers, numbers, np.full(3, np.nan), ones)

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists the usual pairs, texts and scores; a text that the user named stands alone unless a pair was named."""
        texts = [{}] if "text" in self.columns else [texts for texts in TEXTS if not self.scored or len(texts) > 1]
        return [{**columns, "score": score} for columns in texts for score in SCORES] if self.scored else texts

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns or values, and scores that are no numbers."""
        self.check_pair(dataset, split)
        self.targets(dataset, split)

    @property
    def compares_with_dense(self) -> bool:
        """Says so of the cosine with the dense model."""
        return COSINE in self.metrics

    def targets(self, dataset: Dataset, split: str) -> NDArray[np.float64] | None:
        """Gives the score of each row, [N]; None where no metric reads them."""
        if not self.scored:
            return None
        column = self.find_columns(dataset, split)["score"]
        values, where = full_column(dataset, column, split), f"split '{split}', column '{column}'"
        if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
            raise ValueError(f"{where}: scores must be numbers, got {values.type}")
        scores: NDArray[np.float64] = values.to_numpy().astype(np.float64)
        broken = np.flatnonzero(~np.isfinite(scores))
        if len(broken):
            raise ValueError(f"{where}: scores must be finite numbers, got {scores[broken[0]]} in row {broken[0]}")
        return scores

    def encode(self, dataset: Dataset) -> Dataset:
        """Tokenises rows; columns: what the tokenizer gives for each text, [S, T], and `labels`, the score or None."""
        columns, files = self.find_columns(dataset, "data"), self.files
        texts = [columns[role] for role in ("text", "text_pair") if role in columns]
        prefix = files.prompt if self.prefix is None else self.prefix
        tokenizer, length, count = self.processor, self.length, len(texts)

        def tokenise(rows: dict[str, list[str]]) -> dict[str, Any]:
            flat = [prefix + text for row in zip(*(rows[text] for text in texts), strict=True) for text in row]
            flat = [text.lower() for text in flat] if files.lower_case else flat
            encoded = tokenizer(flat, truncation=True, max_length=length)
            return {
                name: [values[at : at + count] for at in range(0, len(flat), count)]
                for name, values in encoded.items()
            }

        encoded = dataset.select_columns(texts).map(tokenise, batched=True, remove_columns=texts, desc="Tokenising")
        lengths = pc.list_value_length(pc.list_flatten(column_of(encoded, "input_ids"))).to_numpy()
        if not lengths.all():
            row = int(np.flatnonzero(lengths == 0)[0]) // count
            raise RowError("a text must have at least one token, got none in row {row}; remove such rows", row)
        self.check_ids(encoded)
        scores = self.targets(dataset, "data")
        return encoded.add_column(LABELS, [None] * len(encoded) if scores is None else scores.tolist())

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes inputs [B, S, T], padded on the right, and labels [B], NaN without a score."""
        names = [name for name in examples[0] if name != LABELS]
        flat = {name: [text for example in examples for text in example[name]] for name in names}
        padded = self.processor.pad(flat, padding_side="right", return_tensors="pt")
        batch = {name: tensor.unflatten(0, (len(examples), -1)) for name, tensor in padded.items()}
        scores = [np.nan if example[LABELS] is None else example[LABELS] for example in examples]
        return Batch(batch, labels=torch.tensor(scores))

    def inputs(self, batch: Batch) -> Batch:
        """Gives the texts one after the other, [B * S, T], without labels."""
        return Batch((name, tensor.flatten(0, 1)) for name, tensor in super().inputs(batch).items())

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Pools token states, [B * S, T, D] -> [B, S, D], to unit length."""
        mask = self.inputs(batch)["attention_mask"]
        embeddings = normalize(pooled(logits, mask, self.files.pooling), dim=-1)
        return EmbeddingReadout(embeddings.unflatten(0, (-1, batch.sequences)), batch[LABELS])

    def side_files(self) -> dict[str, str]:
        """Gives modules, pooling and prompts as they came; for a plain encoder, those that it is taken for."""
        return self.files.contents


def pooled(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Makes one vector of the token states of each text, as sentence-transformers does (`Pooling`).

    Args:
        states: [N, T, D].
        mask: [N, T], 1 for tokens, 0 for padding, which is on the right.
        pooling: mean, cls (the first token), max or lasttoken.

    Returns:
        [N, D].
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    padding = ~mask.bool().unsqueeze(-1)
    if pooling == "max":
        return states.masked_fill(padding, -torch.inf).amax(1)
    return states.masked_fill(padding, 0).sum(1) / mask.sum(1, keepdim=True)
