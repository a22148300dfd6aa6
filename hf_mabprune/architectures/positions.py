"""How long a sequence a model has positions for, which only its config is needed to tell."""

from transformers import PreTrainedConfig

# Their first position embedding in use is `pad_token_id + 1`, so the table serves fewer tokens than it has rows.
# fmt: off
POSITIONS_AFTER_PADDING = frozenset((
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
))
# fmt: on
NO_LIMIT = int(1e30)  # tokens


def max_positions(model_config: PreTrainedConfig) -> int:
    """Gives the longest sequence in tokens that a model has positions for; `NO_LIMIT` if nothing limits it.

    RoBERTa and its like count positions from `pad_token_id + 1`, so they take
    `max_position_embeddings - pad_token_id - 1` tokens: 512 of a table of 514.
    """
    config = model_config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 0
    if positions <= 0:
        return NO_LIMIT
    # The bases are asked too: a pruned model's config is a subclass with a model type of its own.
    if any(getattr(base, "model_type", None) in POSITIONS_AFTER_PADDING for base in type(config).__mro__):
        return int(positions - config.pad_token_id - 1)
    return int(positions)
