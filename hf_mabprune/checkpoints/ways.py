"""In words, what has to be done before a checkpoint loads."""

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_mabprune.checkpoints.modeling_pruned import TYPE_PREFIX


def is_known(model_type: str) -> bool:
    """Tells whether transformers itself knows a model type, or that of a pruned model; a plugin brings the others."""
    return model_type.removeprefix(TYPE_PREFIX) in CONFIG_MAPPING_NAMES


def needed(layout: str, model_type: str) -> str:
    """Says what has to be done first, e.g. "after import hf_mabprune"; nothing where plain AutoModel loads it.

    Args:
        layout: Layout of the checkpoint.
        model_type: Model type of the dense model.
    """
    own = "" if is_known(model_type) else f"the module that registers {model_type.removeprefix(TYPE_PREFIX)}"
    if layout == "uniform":
        return own and f"after import of {own}"
    return f"after import hf_mabprune and {own}" if own else "after import hf_mabprune, or with trust_remote_code=True"
