"""Trains a small GPT-2 on WikiText-2.

python -m research.models.gpt2 --data Salesforce/wikitext --out runs/models/gpt2-wikitext2
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from research.models.language import LENGTH, language_command_line, next_token_loss, perplexity, read_windows
from research.models.training import Figures, Recipe, save, train

RECIPE = Recipe(steps=1_500, batch_size=16, learning_rate=2e-3)
SIZES: dict[str, Any] = {"n_embd": 192, "n_layer": 6, "n_head": 6}


def make(data: str, name: str | None, more: str | None, out: Path, recipe: Recipe = RECIPE, **sizes: Any) -> Figures:
    """Trains the model and saves it.

    Args:
        data: Folder of parquet files with a column `text`, or a data set of the Hub.
        name: Configuration of the data set of the Hub.
        more: Second source, whose training split is added; None for none.
        out: Folder of the trained model.
        recipe: How it is trained.
        sizes: Fields of the configuration that differ from `SIZES`.

    Returns:
        What was measured, as in figures.json.
    """
    set_seed(recipe.seed)
    tokenizer, splits = read_windows(data, name, more)
    # So few passes over the data need no dropout.
    dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends: dict[str, Any] = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=LENGTH, **dropout, **ends, **{**SIZES, **sizes})
    # In bfloat16 on a CPU, the backward pass of fused attention is slow.
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config)

    def loss(indices: torch.Tensor, progress: float) -> torch.Tensor:
        ids = splits["train"][indices]
        return next_token_loss(model(input_ids=ids, use_cache=False).logits, ids)

    minutes = train(model, len(splits["train"]), loss, recipe)
    figures: Figures = {"minutes": round(minutes, 1), "steps": recipe.steps, "training_rows": len(splits["train"])}
    figures |= {split: {"perplexity": perplexity(model, splits[split])} for split in ("validation", "test")}
    save(model, tokenizer, figures, out)
    return figures


if __name__ == "__main__":
    options = language_command_line(__doc__).parse_args()
    make(options.data, options.name, options.more, options.out, replace(RECIPE, seed=options.seed))
