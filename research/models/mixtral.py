"""Trains a small Mixtral on WikiText-2: 8 experts a layer, or another number, of which 2 see a token.

python -m research.models.mixtral --data Salesforce/wikitext --out runs/models/mixtral-wikitext2
python -m research.models.mixtral --num_local_experts 16 --intermediate_size 128 --out runs/models/mixtral16-wikitext2
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM, set_seed
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from research.models.language import LENGTH, language_command_line, next_token_loss, perplexity, read_windows
from research.models.training import Figures, Recipe, save, train

RECIPE = Recipe(steps=2_000, batch_size=16, learning_rate=2e-3)
SIZES: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


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
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        router_aux_loss_coef=0.01,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **{**SIZES, **sizes},
    )
    model = MixtralForCausalLM(config)

    def loss(indices: torch.Tensor, progress: float) -> torch.Tensor:
        ids = splits["train"][indices]
        outputs = model(input_ids=ids, use_cache=False, output_router_logits=True)
        balance = config.router_aux_loss_coef * imbalance(outputs.router_logits, config)
        return next_token_loss(outputs.logits, ids) + balance

    minutes = train(model, len(splits["train"]), loss, recipe)
    figures: Figures = {"minutes": round(minutes, 1), "steps": recipe.steps, "training_rows": len(splits["train"])}
    figures |= {split: {"perplexity": perplexity(model, splits[split])} for split in ("validation", "test")}
    figures["validation"]["experts_load"] = experts_load(model, splits["validation"])
    save(model, tokenizer, figures, out)
    return figures


def imbalance(router_logits: tuple[torch.Tensor, ...], config: MixtralConfig) -> torch.Tensor:
    """Measures how unevenly the experts are used, as the mean over layers of Mixtral's auxiliary loss.

    The model's own sum pools all layers, so that one layer's favourites may make up for another's; this does not.

    Args:
        router_logits: Logits of each layer's router, [B * T, E].
        config: Configuration, which says how many experts see a token.
    """
    experts, chosen = config.num_local_experts, config.num_experts_per_tok
    losses: list[Any] = [load_balancing_loss_func((logits,), experts, chosen) for logits in router_logits]
    return torch.stack(losses).mean()


@torch.inference_mode()
def experts_load(model: MixtralForCausalLM, ids: torch.Tensor) -> list[list[float]]:
    """Measures the share of the tokens that every expert of every layer sees, [L, E]; a layer's shares add up to 2."""
    experts, chosen = model.config.num_local_experts, model.config.num_experts_per_tok
    counts = torch.zeros(model.config.num_hidden_layers, experts)
    for batch in ids.split(32):
        routers = model(input_ids=batch, use_cache=False, output_router_logits=True).router_logits
        counts += torch.stack([F.one_hot(logits.topk(chosen).indices, experts).sum((0, 1)) for logits in routers])
    return [[round(share, 4) for share in layer] for layer in (counts / ids.numel()).tolist()]


if __name__ == "__main__":
    parser = language_command_line(__doc__)
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    for size, default in SIZES.items():
        parser.add_argument(f"--{size}", type=int, default=default)
    options = parser.parse_args()
    recipe = replace(RECIPE, seed=options.seed, steps=options.steps)
    chosen = {size: getattr(options, size) for size in SIZES}
    make(options.data, options.name, options.more, options.out, recipe, **chosen)
