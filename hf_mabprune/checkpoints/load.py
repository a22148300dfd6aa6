"""Loads stored models and configs, whole or not at all; per-layer checkpoints too."""

import tempfile
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.adapters import register_lora_targets
from hf_mabprune.checkpoints.config_file import check_fields, check_sizes
from hf_mabprune.checkpoints.dequantise import dequantised
from hf_mabprune.checkpoints.modeling_file import check_code
from hf_mabprune.checkpoints.offload import on_device, places_of, take_over
from hf_mabprune.checkpoints.stored_files import ORIGIN, read_json, stored_file
from hf_mabprune.checkpoints.weight_files import REMEDY, StoredWeights, check_numbers, no_larger_than, stored_weights
from hf_mabprune.errors import in_words, outside

CONFIG = "config.json"
GGUF_SUFFIX = ".gguf"
LANGUAGE_MODELS = {**MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
GENERATION_FILE = "generation_config.json"
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # on reloaded logits, by precision of the model in memory
HALF_TOLERANCE = 0.1
POOLER = "pooler."  # how names of its weights begin


def register_auto_classes() -> None:
    """Lets AutoConfig and AutoModel* read per-layer checkpoints of every supported type that transformers knows."""
    modeling_pruned.register([name for name in ARCHITECTURES.names() if name in CONFIG_MAPPING])
    register_lora_targets(imported=True)


def load_config(name: str, **origin: Any) -> PreTrainedConfig:
    """Reads the config of a stored model, per-layer ones included. What it says is checked before it is believed.

    Args:
        name: Folder or Hub name.
        origin: Options of `from_pretrained`: `revision`, `trust_remote_code`, `gguf_file`.

    Raises:
        OSError: If there is no such folder, and no such model on the Hub.
        ValueError: If the folder holds an adapter, or a config that cannot be read, or code that takes the place of
            this package's where remote code may run.
    """
    register_auto_classes()
    folder, file = Path(name), origin.get("gguf_file") or CONFIG
    if folder.exists() and not (folder / file).is_file():
        if (folder / "adapter_config.json").exists():
            raise ValueError(f"{name} is an adapter: merge it first (PeftModel.merge_and_unload) and save that")
        raise FileNotFoundError(f"{name} holds no {file}: {_in_place_of(file, folder)}")
    trusted = bool(origin.get("trust_remote_code"))
    which = {option: origin[option] for option in (*ORIGIN, "gguf_file") if option in origin}
    place = folder / file if folder.exists() else f"{file} of {name}"
    settings = _stored_settings(name, which)
    with outside(f"{place} cannot be read"):
        check_fields(settings, trusted)
        if folder.exists():
            refuse_unknown_family(settings)
    check_code(name, settings, trusted, **which)
    with outside(f"{place} cannot be read"):
        config = AutoConfig.from_pretrained(name, **origin)
        check_sizes(config)
    if file != CONFIG and not config.architectures:  # GGUF files hold language models, and do not say so
        config.architectures = [LANGUAGE_MODELS[config.model_type]] if config.model_type in LANGUAGE_MODELS else None
    return config


def _in_place_of(file: str, folder: Path) -> str:
    """Says what to do where a folder, or what was given for one, does not hold a file with a config."""
    if file != CONFIG:
        return "name a file that is there"
    if found := [folder] if folder.suffix == GGUF_SUFFIX else sorted(folder.glob(f"*{GGUF_SUFFIX}")):
        return f"set model.name: {found[0].parent}, model.gguf_file: {found[0].name} and model.dequantize: true"
    return f"give {sizes_in(folder) or 'the folder that a model was saved to'}"


def _stored_settings(name: str, which: dict[str, Any]) -> Any:
    """Reads the contents of a config.json; arguments and errors as those of `load_config`."""
    try:
        return PreTrainedConfig.get_config_dict(name, **which)[0]
    except Exception as error:  # whatever the library, the network and a file raise
        if Path(name).exists():
            file = which.get("gguf_file") or CONFIG
            raise ValueError(f"{Path(name) / file} cannot be read: {in_words(error)}") from error
        raise OSError(
            f"model '{name}' is no folder in {Path.cwd()}, and the Hub does not give it: {in_words(error)}"
        ) from error


def refuse_unknown_family(settings: dict[str, Any]) -> None:
    """Refuses a per-layer checkpoint of a family that is not known here; transformers would only see its code.

    Args:
        settings: Contents of config.json.

    Raises:
        ValueError: Saying how to make the family known.
    """
    model_type = str(settings.get("model_type"))
    if model_type.startswith(modeling_pruned.TYPE_PREFIX):
        ARCHITECTURES.get(model_type.removeprefix(modeling_pruned.TYPE_PREFIX))


def load_weights(
    auto_class: str, name: str, places: Mapping[str, Any] | None = None, **options: Any
) -> PreTrainedModel:
    """Reads a model, and makes sure that none of its weights is random.

    Args:
        auto_class: Name of the AutoModel class.
        name: Folder or Hub name.
        places: Options of `from_pretrained` that say where weights lie, `device_map` among them, for a model that
            brings its layers in (`offload`).
        options: Other options of `from_pretrained`, and those of `dequantising` for packed weights.

    Raises:
        ValueError: If there are no weights, they cannot be read, or are not all there or of another size
            (transformers would fill them up at random), or some are no finite floating-point numbers.
    """
    return _complete(getattr(transformers, auto_class), name, options, places)


def _complete(
    loader: Any, name: str, options: dict[str, Any], places: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Reads a model with a class that has `from_pretrained`; else as `load_weights`."""
    model, loading, stored = _read_model(loader, name, options, places or {})
    # Without what the architecture declares harmless, and without tied weights.
    for weight, shape, expected in sorted(loading["mismatched_keys"]):
        raise ValueError(
            f"the weights of {name} do not fit its config: {weight} must have shape {list(expected)}, got "
            f"{list(shape)}; save both together again"
        )
    if missing := _read_weights(model, loading["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"the weights of {name} lack {missing[0]}{more}, which {type(model).__name__} needs and would have at "
            "random: fine-tune the model for the task first, or save it again"
        )
    check_numbers(model, stored, name)
    return model


def _read_weights(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """Picks the missing weights that something reads. Without a head nothing reads the pooler of an encoder, which
    checkpoints of other heads do not have: it becomes zero."""
    headless = model.base_model is model
    unread = [
        name for name in missing if headless and name.startswith(POOLER) and not model.get_parameter(name).is_meta
    ]
    for name in unread:
        model.get_parameter(name).data.zero_()
    return sorted({*missing} - {*unread})


def _read_model(
    loader: Any, name: str, options: dict[str, Any], places: Mapping[str, Any]
) -> tuple[PreTrainedModel, Any, StoredWeights]:
    """Reads a model that is not much larger than its files.

    Args:
        loader: Class with `from_pretrained`.
        name: Folder or Hub name.
        options: Options of `from_pretrained`, and those of `dequantising`.
        places: Those that say where weights lie; none for all of them where the model is.

    Returns:
        The model, what transformers says of loading it, and what its files hold.
    """
    options = dict(options)
    dequantize = options.pop("dequantize", False)
    stored = stored_weights(name, packed=dequantize, **options)
    if side := stored_file(name, GENERATION_FILE, **options):
        read_json(side)  # which transformers would pass over without a word
    remedy = "see model.device_map, model.max_memory and model.offload_folder" if places else REMEDY
    with outside(f"{name} cannot be loaded", remedy), no_larger_than(stored, name):
        reading = {**options, "output_loading_info": True, "ignore_mismatched_sizes": True}
        if not places:
            model, loading = loader.from_pretrained(name, **reading)
            return dequantised(model, options["dtype"], name) if dequantize else model, loading, stored
        if folder := places.get("offload_folder"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        # What is read stays mapped. Weights that come and go are no inference tensors.
        with tempfile.TemporaryDirectory(prefix="mabprune-", dir=folder) as passing, torch.inference_mode(False):
            model, loading = loader.from_pretrained(name, **reading, **{**places, "offload_folder": passing})
            model = dequantised(model, options["dtype"], name) if dequantize else model
            take_over(model, folder, stored.tensors)
    return model, loading, stored


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
        ValueError: If config.json names no class, or the weights or the code beside them are not what they should be.
        OSError: If there is no such checkpoint.
    """
    options = {option: kwargs[option] for option in (*ORIGIN, "trust_remote_code") if option in kwargs}
    loader = model_class_of(load_config(str(folder), **options), str(folder))
    return _complete(loader, str(folder), kwargs)


def model_class_of(config: PreTrainedConfig, name: str) -> type[PreTrainedModel]:
    """Finds the class that a config names: one that an AutoModel class builds for it, as for a plugin's type, or any
    other of transformers.

    Args:
        config: Config of a stored model.
        name: Folder or Hub name, for messages.

    Raises:
        ValueError: If it names none.
    """
    if not config.architectures:
        raise ValueError(f"{name}: config.json names no architecture")
    wanted = config.architectures[0]
    home = modeling_pruned if wanted.startswith(modeling_pruned.CLASS_PREFIX) else transformers
    built = chain.from_iterable(modeling_pruned.auto_classes(type(config)).values())
    found: Any = next((model for model in built if model.__name__ == wanted), getattr(home, wanted, None))
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        raise ValueError(f"{name}: config.json names the architecture {wanted!r:.99}, which transformers has not")
    return found


@torch.inference_mode()
def reload_difference(model: PreTrainedModel, folder: Path, auto_class: str, inputs: dict[str, torch.Tensor]) -> float:
    """Reads a checkpoint back through its AutoModel class and compares what it says with the model in memory: logits,
    or the states of tokens where it has no head.

    Args:
        model: Model that was saved.
        folder: Checkpoint.
        auto_class: Name of the AutoModel class.
        inputs: Arguments of one forward pass, on the model's device.

    Returns:
        Largest absolute difference of two numbers; nan where one of them is, so ask whether it is small, and never
        whether it is large.
    """
    register_auto_classes()
    loader, options = getattr(transformers, auto_class), {"dtype": model.dtype}
    if places := places_of(model):
        again = on_device(_read_model(loader, str(folder), options, places)[0], model.device).eval()
    else:
        again = loader.from_pretrained(folder, **options).to(model.device).eval()
    return float((model(**inputs)[0] - again(**inputs)[0]).abs().max())
