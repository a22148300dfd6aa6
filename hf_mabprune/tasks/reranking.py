"""Reranking: put the text that goes with a query before others that do not, with a cross-encoder."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset

from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.choice_task import ChoiceTask
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.scores import Scores


@dataclass(frozen=True)
class RankingReadout(Readout):
    """How well each candidate goes with a query: one position, a distribution over the candidates.

    Attributes:
        outputs: Logits of the candidates, [B, 1, candidates]; [A, B, 1, candidates] for `divergence`.
        targets: Index of the right one, [B, 1].
    """

    def scores(self, with_predictions: bool = True) -> Scores:
        """See `Readout.scores`; `ranks` are those of the right candidates."""
        return replace(super().scores(with_predictions), ranks=self.ranks().cpu().numpy())

    def ranks(self) -> torch.Tensor:
        """Counts the candidates that come no later than the right one, [B] float64: 1 is the best rank.

        Of equals the right one comes last, and it is behind all where a logit is NaN: no model is right by luck.
        """
        others, right = self.outputs.detach(), self.outputs.detach().gather(-1, self.targets.unsqueeze(-1))
        return (~(others < right)).sum((1, 2)).double()


@TASKS.register("reranking")
@dataclass(kw_only=True)
class Reranking(ChoiceTask):
    """Ranks texts by how well they go with a query. Roles: `query`, `candidates` and `label`.

    For cross-encoders: classifiers with one output, which read query and candidate as a pair. Has to be asked for:
    task.type: reranking. `candidates` are a list of texts, as many in every row of a split, of which `label` is the
    index of the right one. Each pair is cut at `max_length` tokens, 256 by default or what tokenizer and model can
    take.

    What a model says of a query is the softmax of its outputs over the candidates: losses (Cao et al., ListNet, 2007,
    section 4.1, with one right candidate) and divergences are of that distribution. Metrics go by the rank r of the
    right candidate: `ndcg` is the mean of 1 / log2(1 + r), `mrr` of 1 / r.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline_tag: ClassVar[str | None] = "text-ranking"
    tags: ClassVar[tuple[str, ...]] = ("cross-encoder", "reranker")
    heads: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)
    roles: ClassVar[tuple[str, ...]] = ("query", "candidates", "label")
    usual_names: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("query", "question"),
        ("candidates", "documents", "passages"),
        ("label", "labels"),
    )
    default_metrics: ClassVar[tuple[str, ...]] = ("ndcg", "mrr", "accuracy")
    metric_inputs: ClassVar[dict[str, str]] = {**ChoiceTask.metric_inputs, "ranks": "ranks"}
    asked_for_by_name: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.model_config.num_labels != 1:
            raise ValueError(
                f"num_labels must be 1, how well two texts go together, got {self.model_config.num_labels}; use a "
                "cross-encoder, or set task.type: sequence_classification"
            )
        super().__post_init__()

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one output."""
        return {"num_labels": 1}

    def rehearsal(self) -> Scores:
        """Makes scores like those of a split, every right candidate the first."""
        scores = super().rehearsal()
        return replace(scores, ranks=np.ones(len(scores.losses)))

    def inputs(self, batch: Batch) -> Batch:
        """Gives the pairs one after the other, [B * candidates, T], without labels."""
        return Batch((name, tensor.flatten(0, 1)) for name, tensor in super().inputs(batch).items())

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Puts the outputs of the candidates of each query together, [B * candidates, 1] -> [B, 1, candidates]."""
        return RankingReadout(outputs=logits.reshape(-1, 1, batch.sequences), targets=batch[LABELS][:, None])
