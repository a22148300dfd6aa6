"""Trains a network on rows that are one batch; of any model type, so that nothing is registered here."""

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.sampling import batches_of
from research.models.training import Recipe, train


def train_on(model: PreTrainedModel, rows: Batch, recipe: Recipe) -> float:
    """Trains a network in place, from where it is; gives the minutes of training.

    Args:
        model: Network, as it is or cut; it gives a loss where it is given labels.
        rows: All training rows.
        recipe: How it is trained.
    """

    def loss(indices: torch.Tensor, progress: float) -> torch.Tensor:
        value = model(**rows.rows(indices)).loss
        assert value is not None, "labels are given"
        return value

    return train(model, rows.examples, loss, recipe)


def all_rows(task: Task, data: Dataset) -> Batch:
    """Encodes a data set as one batch."""
    (batch,) = batches_of(task, task.encode(data), len(data))
    return batch
