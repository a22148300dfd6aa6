"""Lets vLLM serve per-layer checkpoints: its entry point `vllm.general_plugins`, which it calls where it finds one.

Uniform checkpoints are stock ones, and need nothing. The others run in vLLM's Transformers backend (vLLM 0.32,
vllm/model_executor/models/transformers), which builds a model by AutoModel, puts its own layers in the place of Linear
modules, each with the size that it finds, and reads heads by layer from `per_layer_config`.
"""

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.checkpoints.load import register_auto_classes
from hf_mabprune.checkpoints.modeling_pruned import CLASS_PREFIX

BACKEND = "vllm.model_executor.models.transformers"
SERVED = (  # names of stock classes by model type, and the class of vLLM that runs them
    (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "TransformersForCausalLM", "TransformersMoEForCausalLM"),
    (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "TransformersForSequenceClassification",
        "TransformersMoEForSequenceClassification",
    ),
    (MODEL_MAPPING_NAMES, "TransformersEmbeddingModel", "TransformersMoEEmbeddingModel"),
)


def served_classes() -> dict[str, str]:
    """Maps the per-layer class names that config.json may have to `module:class` of vLLM, for every supported type."""
    found: dict[str, str] = {}
    for model_type in ARCHITECTURES.names():
        stacks = ARCHITECTURES.get(model_type).stacks
        experts = any(site.kind == "expert" for stack in stacks for site in stack.sites)
        for names, plain, mixture in SERVED:
            if model_type in names:
                stock = names[model_type]
                for name in (stock,) if isinstance(stock, str) else stock:
                    found[f"{CLASS_PREFIX}{name}"] = f"{BACKEND}:{mixture if experts else plain}"
    return found


def register() -> None:
    """Makes AutoConfig and vLLM's ModelRegistry know per-layer checkpoints; vLLM calls it in each of its processes."""
    from vllm import ModelRegistry

    register_auto_classes()
    for name, model in served_classes().items():
        ModelRegistry.register_model(name, model)
