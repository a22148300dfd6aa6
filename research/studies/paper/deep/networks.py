"""The networks of the deep settings: a small vision transformer, a fine-tuned encoder, a small reader of stories.

Each is trained once for its setting, where Accelerate computes, and kept.
Symbols: N rows.
"""

import copy
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast, set_seed

from hf_mabprune.checkpoints.processors import Processor, load_processor
from hf_mabprune.config import PruneConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.evaluation.quality import evaluate, forward_of
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of, encode_sample
from research.benchmarks import finetuning
from research.benchmarks.finetuning import Training, load_base
from research.models import vit
from research.models.training import Recipe, save
from research.studies.paper.fitting import all_rows, train_on
from research.studies.paper.rows import A_STEP

FIGURES = "figures.json"
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@dataclass(frozen=True)
class Trained:
    """Holds a trained network, its tokenizer or image processor, and how many rows it saw, repeats counted."""

    model: PreTrainedModel
    processor: Processor
    rows_seen: int


class Network(ABC):
    """Says what the network of a setting is, and how it is trained."""

    @abstractmethod
    def fit(self, settings: PruneConfig, rows: Dataset, encoder: Path) -> Trained:
        """Trains it.

        Args:
            settings: Settings of the runs that prune it; the task and the seed are read.
            rows: Training rows.
            encoder: Folder of the encoder that text settings start from.
        """


@dataclass(frozen=True)
class VisionTransformer(Network):
    """Six layers of width 128 over patches of 32 x 32 pixels, as `research.models.vit` has them.

    Attributes:
        recipe: How it is trained.
        patch_size: Side of a patch.
        mirrored: Whether images are mirrored in training.
    """

    recipe: Recipe
    patch_size: int
    mirrored: bool

    def fit(self, settings: PruneConfig, rows: Dataset, encoder: Path) -> Trained:
        """See `Network.fit`."""
        device = make_accelerator().device
        model, processor, _ = vit.fit(rows, self.recipe, self.mirrored, device, patch_size=self.patch_size)
        return Trained(model, processor, self.recipe.steps * self.recipe.batch_size)


@dataclass(frozen=True)
class Encoder(Network):
    """A pretrained encoder with a new head, all of it fine-tuned.

    Attributes:
        training: How it is fine-tuned.
    """

    training: Training

    def fit(self, settings: PruneConfig, rows: Dataset, encoder: Path) -> Trained:
        """See `Network.fit`."""
        set_seed(settings.seed)
        model = load_base(str(encoder), settings, rows)
        processor = load_processor(TASKS.get(str(settings.task.type)).processor_class, str(encoder))
        task = task_of(settings, model, processor)
        examples = encode_sample(task, rows, None, settings.seed)
        finetuning.train(model, task, examples, self.training, settings.seed)
        return Trained(model, processor, round(self.training.epochs * len(rows)))


@dataclass(frozen=True)
class Reader(Network):
    """A small BERT from scratch, over sentences: each sentence is one token, as a memory network reads a story.

    Attributes:
        recipe: How it is trained.
        sizes: Fields of its configuration.
    """

    recipe: Recipe
    sizes: Mapping[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 256,
        }
    )

    def fit(self, settings: PruneConfig, rows: Dataset, encoder: Path) -> Trained:
        """See `Network.fit`."""
        set_seed(self.recipe.seed)
        names = dict(enumerate(rows.features["label"].names))
        tokenizer = sentence_tokenizer([*rows["question"], *rows["story"]])
        width = self.sizes["hidden_size"]
        config = BertConfig(
            **self.sizes,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=32,
            initializer_range=width**-0.5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=names,
            label2id={name: number for number, name in names.items()},
        )
        device = make_accelerator().device
        model = BertForSequenceClassification(config)
        model.to(device)
        task = task_of(settings, model, tokenizer)
        train_on(model, all_rows(task, rows).to(device), self.recipe)
        return Trained(model, tokenizer, self.recipe.steps * self.recipe.batch_size)


def sentence_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Makes a tokenizer whose tokens are whole sentences, those that some texts have."""
    split = pre_tokenizers.Split(Regex(r"(?<=[.?])\s+"), "removed")
    sentences = sorted({sentence for text in texts for sentence, _ in split.pre_tokenize_str(text)})
    tokens = [*SPECIAL.values(), *sentences]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = split
    frame = [(token, vocabulary[token]) for token in (SPECIAL["cls_token"], SPECIAL["sep_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **SPECIAL)


def task_of(settings: PruneConfig, model: PreTrainedModel, processor: Processor) -> Task:
    """Makes the task of a model; its processor is a copy, for calls leave their truncation in a tokenizer."""
    return build_task(settings.task, copy.deepcopy(processor), model.config, type(model).__name__)


def make_network(network: Network, settings: PruneConfig, encoder: Path) -> dict[str, Any]:
    """Trains the network of a setting where there is none yet, and gives its figures.

    Args:
        network: What it is.
        settings: Settings of the runs that prune it, which name its folder and its data.
        encoder: Folder of the encoder that text settings start from.

    Returns:
        `seconds` of training, `rows` that it sent forward, `A_STEP` times each, and split -> metrics.
    """
    place = Path(settings.model.name)
    if not place.is_dir():
        splits, started = load_splits(settings.task), time.perf_counter()
        made = network.fit(settings, splits["calibration"], encoder)
        seconds = time.perf_counter() - started
        figures = {"seconds": round(seconds, 1), "rows": A_STEP * made.rows_seen, **_measured(made, settings, splits)}
        with atomic_folder(place) as work:
            save(made.model, made.processor, figures, work)
    figures = json.loads((place / FIGURES).read_text(encoding="utf-8"))
    return dict(figures)


def _measured(made: Trained, settings: PruneConfig, splits: Mapping[str, Dataset]) -> dict[str, dict[str, float]]:
    """Measures a network on held-out rows: split -> metric -> value."""
    accelerator = make_accelerator()
    model = made.model.eval()
    model.to(accelerator.device)
    task = task_of(settings, model, made.processor)
    found = {}
    for split in ("validation", "test"):
        batches = batches_of(task, task.encode(splits[split]), settings.task.batch_size)
        found[split] = evaluate(forward_of(model, task), task, batches, accelerator, intervals=False).metrics
    return found
