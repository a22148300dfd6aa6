"""Trains and saves small models: what their recipes have in common."""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

logger = logging.getLogger(__name__)

Figures = dict[str, Any]
Loss = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """Says how a model is trained: AdamW, a linear warm-up over 5% of the steps, then a cosine down to 0.

    Attributes:
        steps: Number of steps.
        batch_size: Rows a step.
        learning_rate: Learning rate at its peak.
        weight_decay: Decay of matrices and embeddings; biases and norms have none.
        bfloat16: Whether matrix products are taken in bfloat16; weights stay in float32.
        seed: Seed of the initial weights, of the order of rows and of whatever else is drawn.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.1
    bfloat16: bool = True
    seed: int = 0


def train(model: torch.nn.Module, rows: int, loss: Loss, recipe: Recipe) -> float:
    """Trains a model in place and leaves it ready for evaluation.

    Args:
        model: Model with fresh weights, on the device that it is trained on.
        rows: Number of training rows.
        loss: Function of the drawn rows' indices, [B], and of the share of the steps that is done; returns a scalar.
        recipe: How the model is trained.

    Returns:
        Minutes of training.
    """
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.steps // 20, recipe.steps)
    device = next(model.parameters()).device.type
    start = time.perf_counter()
    model.train()
    for step, chosen in enumerate(shuffled(rows, recipe), 1):
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bfloat16):
            value = loss(chosen, step / recipe.steps)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % max(1, recipe.steps // 50) == 0:
            seconds = time.perf_counter() - start
            logger.info("step %d of %d, loss %.3f, %.0f s", step, recipe.steps, value.item(), seconds)
    model.eval()
    return (time.perf_counter() - start) / 60


def shuffled(rows: int, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Draws the rows of every step, [B], in passes over all rows; what is left at the end of a pass is dropped."""
    size = min(recipe.batch_size, rows)
    a_pass = rows // size
    for step in range(recipe.steps):
        if step % a_pass == 0:
            order = torch.randperm(rows)
        first = step % a_pass * size
        yield order[first : first + size]


def read_split(data: str, name: str | None, split: str) -> Dataset:
    """Reads a split of a folder of parquet files (train.parquet, ...) or of a data set of the Hub."""
    folder = Path(data)
    if folder.is_dir():
        return Dataset.from_parquet(str(folder / f"{split}.parquet"))
    return load_dataset(data, name, split=split)


def save(model: PreTrainedModel, processor: Any, figures: Figures, out: Path) -> None:
    """Saves a model with its tokenizer or image processor, and figures.json, which says what was measured."""
    model.save_pretrained(out)
    processor.save_pretrained(out)
    figures = {"parameters": model.num_parameters(), **figures}
    text = json.dumps(figures, indent=2)
    (out / "figures.json").write_text(text + "\n", encoding="utf-8")
    logger.info("%s", text)


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Makes the parser of a recipe, with the options that all recipes have, and turns the progress lines on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--seed", type=int, default=0)
    return parser
