"""Loads stored models, configs, tokenizers and image processors, whole or not at all; per-layer checkpoints too."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.checkpoints import modeling_pruned

# Makes texts, or images, into inputs of a model; None where rows are inputs as they are.
Processor = PreTrainedTokenizerBase | BaseImageProcessor | None


def register_auto_classes() -> None:
    """Lets AutoConfig and AutoModel* read per-layer checkpoints of every supported type that transformers knows."""
    modeling_pruned.register([name for name in ARCHITECTURES.names() if name in CONFIG_MAPPING])


def load_config(name: str, **origin: Any) -> PreTrainedConfig:
    """Reads the config of a stored model, per-layer ones included.

    Args:
        name: Folder or Hub name.
        origin: Options of `from_pretrained`: `revision`, `trust_remote_code`.

    Raises:
        OSError: If there is no such folder, and no such model on the Hub.
        ValueError: If the folder holds an adapter, or a config that cannot be read.
    """
    register_auto_classes()
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").exists():
            raise ValueError(f"{name} is an adapter: merge it first (PeftModel.merge_and_unload) and save that")
        raise FileNotFoundError(
            f"{name} holds no config.json: give {sizes_in(folder) or 'the folder that a model was saved to'}"
        )
    try:
        if folder.exists():
            refuse_unknown_family(folder)
        return AutoConfig.from_pretrained(name, **origin)
    except (OSError, ValueError, AttributeError, TypeError, StrictDataclassError) as error:
        if folder.exists():
            raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error
        raise OSError(f"model '{name}' is no folder in {Path.cwd()}, and the Hub does not give it: {error}") from error


def refuse_unknown_family(folder: Path) -> None:
    """Refuses a per-layer checkpoint of a family that is not known here; transformers would only see its code.

    Raises:
        ValueError: Saying how to make the family known.
        OSError: If the config cannot be read.
    """
    model_type = str(PreTrainedConfig.get_config_dict(folder)[0].get("model_type"))
    if model_type.startswith(modeling_pruned.TYPE_PREFIX):
        ARCHITECTURES.get(model_type.removeprefix(modeling_pruned.TYPE_PREFIX))


def load_processor(auto_class: str | None, name: str, **origin: Any) -> Processor:
    """Reads the tokenizer or the image processor of a stored model; other arguments as those of `load_config`.

    Args:
        auto_class: Name of the class that reads it, "AutoTokenizer" or "AutoImageProcessor"; None where there is none.

    Raises:
        ValueError: If there is none.
    """
    if auto_class is None:
        return None
    kind = kind_of_processor(auto_class)
    remedy = f"save it beside the model ({kind.split()[-1]}.save_pretrained)"
    try:
        reader = getattr(transformers, auto_class)
        processor: PreTrainedTokenizerBase | BaseImageProcessor = reader.from_pretrained(name, **origin)
    except Exception as error:  # the library behind raises bare Exceptions for files that it cannot read
        reason = " ".join(str(error).split())
        raise ValueError(f"the {kind} of {name} cannot be read ({reason}): {remedy}") from error
    # Where there are no files, transformers makes a tokenizer from the config that knows no word.
    if isinstance(processor, BaseImageProcessor) or set(processor.get_vocab()) - set(processor.all_special_tokens):
        return processor
    raise ValueError(f"{name} holds no {kind}: {remedy}")


def kind_of_processor(auto_class: str) -> str:
    """Says in words what a class reads: "image processor" for "AutoImageProcessor"."""
    return " ".join(re.findall("[A-Z][a-z]+", auto_class)[1:]).lower()


def load_weights(auto_class: str, name: str, **options: Any) -> PreTrainedModel:
    """Reads a model, and makes sure that none of its weights is random.

    Args:
        auto_class: Name of the AutoModel class.
        name: Folder or Hub name.
        options: Options of `from_pretrained`.

    Raises:
        OSError: If there are no weights.
        ValueError: If they cannot be read, or are not all there or of another size: transformers would fill them up
            at random.
    """
    load = getattr(transformers, auto_class).from_pretrained
    try:
        model, loading = load(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (SafetensorError, pickle.UnpicklingError, EOFError, LookupError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} cannot be loaded ({error}): fetch or save the model again") from error
    # Without what the architecture declares harmless, and without tied weights.
    for weight, stored, expected in sorted(loading["mismatched_keys"]):
        raise ValueError(
            f"the weights of {name} do not fit its config: {weight} must have shape {list(expected)}, got "
            f"{list(stored)}; save both together again"
        )
    if missing := sorted(loading["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"the weights of {name} lack {missing[0]}{more}, which {type(model).__name__} needs and would have at "
            "random: fine-tune the model for the task first, or save it again"
        )
    complete: PreTrainedModel = model
    return complete


def sizes_in(folder: Path) -> str:
    """Names the checkpoints below the output folder of a run with several sizes; says nothing where there are none."""
    return " or ".join(str(path.parent) for path in sorted(folder.glob("*/config.json")))


def load_pruned(folder: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Loads a checkpoint with the class that its config names, whichever layout it has.

    Args:
        folder: Folder or Hub name.
        kwargs: Options of `from_pretrained`, e.g. `dtype` or `device_map`.

    Returns:
        The model, of the class that config.json names.

    Raises:
        ValueError: If config.json names no class.
        OSError: If there is no such checkpoint.
    """
    register_auto_classes()
    name = (AutoConfig.from_pretrained(folder).architectures or [None])[0]
    if name is None:
        raise ValueError(f"{folder}: config.json names no architecture")
    home = modeling_pruned if name.startswith(modeling_pruned.CLASS_PREFIX) else transformers
    model: PreTrainedModel = getattr(home, name).from_pretrained(folder, **kwargs)
    return model


@torch.inference_mode()
def reload_difference(model: PreTrainedModel, folder: Path, auto_class: str, inputs: dict[str, torch.Tensor]) -> float:
    """Reads a checkpoint back through its AutoModel class and compares logits with the model in memory.

    Args:
        model: Model that was saved.
        folder: Checkpoint.
        auto_class: Name of the AutoModel class.
        inputs: Arguments of one forward pass, on the model's device.

    Returns:
        Largest absolute difference of two logits.
    """
    register_auto_classes()
    again = getattr(transformers, auto_class).from_pretrained(folder, dtype=model.dtype).to(model.device).eval()
    return float((model(**inputs).logits - again(**inputs).logits).abs().max())
