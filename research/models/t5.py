"""Trains a small T5 to sort letters, and writes the rows that it is trained and tested on.

python -m research.models.t5 --out runs/models/t5-sort
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, set_seed

from research.models.training import Figures, Recipe, command_line, save, train

RECIPE = Recipe(steps=1_500, batch_size=128, learning_rate=1e-3, weight_decay=0.01)
ROWS = {"train": 50_000, "validation": 1_000, "test": 1_000}
SIZES: dict[str, Any] = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 3, "num_heads": 4}
SHORTEST, LONGEST = 5, 9


def make(out: Path, recipe: Recipe = RECIPE, rows: dict[str, int] = ROWS, **sizes: Any) -> Figures:
    """Trains the model and saves it; the rows go to its folder `data`.

    Args:
        out: Folder of the trained model.
        recipe: How it is trained.
        rows: Split -> number of rows, for train, validation and test.
        sizes: Fields of the configuration that differ from `SIZES`.

    Returns:
        What was measured, as in figures.json.
    """
    set_seed(recipe.seed)
    splits = write_rows(out / "data", rows, recipe.seed)
    tokenizer = make_tokenizer()
    start = {"decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(vocab_size=len(tokenizer), dropout_rate=0.0, **start, **{**SIZES, **sizes})
    # In bfloat16 on a CPU, the backward pass of fused attention is slow.
    config._attn_implementation = "eager"
    model = T5ForConditionalGeneration(config)
    batch = encode(tokenizer, splits["train"])

    def loss(indices: torch.Tensor, progress: float) -> torch.Tensor:
        outputs: torch.Tensor = model(**{name: values[indices] for name, values in batch.items()}).loss
        return outputs

    minutes = train(model, rows["train"], loss, recipe)
    figures: Figures = {"minutes": round(minutes, 1), "steps": recipe.steps, "training_rows": rows["train"]}
    figures |= {split: measure(model, tokenizer, splits[split]) for split in ("validation", "test")}
    save(model, tokenizer, figures, out)
    return figures


def write_rows(folder: Path, rows: dict[str, int], seed: int) -> dict[str, Dataset]:
    """Draws lists of 5 to 9 letters, no list twice, and writes a parquet file for every split.

    Args:
        folder: Folder of the files; it is made if it does not exist.
        rows: Split -> number of rows.
        seed: Seed of the letters.

    Returns:
        Split -> rows with the columns `source` and `target`, e.g. "q c x c a" and "a c c q x".
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, None] = {}
    while len(drawn) < sum(rows.values()):
        length = generator.integers(SHORTEST, LONGEST + 1)
        drawn[" ".join(generator.choice(list(ascii_lowercase), length))] = None
    lists = iter(drawn)
    splits = {}
    for split, count in rows.items():
        sources = list(islice(lists, count))
        targets = [" ".join(sorted(source.split())) for source in sources]
        splits[split] = Dataset.from_dict({"source": sources, "target": targets})
        splits[split].to_parquet(str(folder / f"{split}.parquet"))
    return splits


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer whose tokens are the letters and T5's <pad>, which also starts targets, </s> and <unk>."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokens = [*special.values(), *ascii_lowercase]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def encode(tokenizer: PreTrainedTokenizerFast, rows: Dataset) -> dict[str, torch.Tensor]:
    """Makes `input_ids`, `attention_mask` and `labels`, [N, T], where padding is no target."""
    sources = tokenizer(list(rows["source"]), padding=True, return_tensors="pt")
    labels = tokenizer(list(rows["target"]), padding=True, return_tensors="pt")["input_ids"]
    labels = labels.masked_fill(labels == tokenizer.pad_token_id, -100)
    return {"input_ids": sources["input_ids"], "attention_mask": sources["attention_mask"], "labels": labels}


@torch.inference_mode()
def measure(model: Any, tokenizer: PreTrainedTokenizerFast, rows: Dataset) -> dict[str, float]:
    """Measures the loss a token in nats, and the share of rows whose greedy generation is the target."""
    batch = encode(tokenizer, rows)
    generated = model.generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=LONGEST + 1, do_sample=False
    )
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    matches = [text == target for text, target in zip(texts, rows["target"], strict=True)]
    return {"loss": model(**batch).loss.item(), "exact_match": sum(matches) / len(matches)}


if __name__ == "__main__":
    options = command_line(__doc__).parse_args()
    make(options.out, replace(RECIPE, seed=options.seed))
