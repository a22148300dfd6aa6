"""Cuts tokens out of a model: the rows of its embeddings and its head, and every id that its configs name.

Which parameters those are is found by trial: the model is built with either vocabulary on the meta device, and what
differs is what a vocabulary decides. So no family has to name them.

Symbols: V tokens.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.arms import Ints

IDS = re.compile(r".*_token_(?:ids?|index)|(?:begin_)?suppress_tokens|bad_words_ids")  # fields that name tokens


def rows_of(model: PreTrainedModel) -> int:
    """Counts the tokens that a model has rows for, V.

    Raises:
        ValueError: If it reads no tokens.
    """
    rows = getattr(model.config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        raise ValueError(f"prune.vocabulary cuts tokens, and a {model.config.model_type} reads none: leave it out")
    return rows


def named_ids(model: PreTrainedModel) -> set[int]:
    """Collects the ids that the configs of a model name, of tokens that it has a row for."""
    found: set[int] = set()
    for owner in _owners(model):
        for value in _fields(owner).values():
            found |= {*_flat(value)}
    return {number for number in found if 0 <= number < rows_of(model)}


def without_tokens(dense: PreTrainedModel, keep: Ints, ids: Mapping[int, int]) -> PreTrainedModel:
    """Copies a model without some tokens; the copy shares all other matrices with the dense model, which stays as it
    is.

    Args:
        dense: Supported model.
        keep: Ids of the tokens that stay, [V], in the order of their new ids.
        ids: Id -> new id, of tokens without a row too.

    Raises:
        ValueError: If the model's class makes something else of a smaller vocabulary than fewer rows.
    """
    rows, kind = rows_of(dense), dense.config.model_type
    smaller = copy.deepcopy(dense.config)
    for part in _with_parts([smaller]):
        _renumber(part, rows, len(keep), ids)
    try:
        whole, built = _built(dense, dense.config), _built(dense, smaller)
    except Exception as error:  # whatever the constructors of a family raise
        raise ValueError(f"prune.vocabulary: no {kind} can be built with another vocabulary: leave it out") from error
    copies: dict[int, Any] = {}
    index, tensors = torch.from_numpy(np.asarray(keep)), _tensors(built)
    for name, tensor in _tensors(dense).items():
        shape = tensors[name].shape if name in tensors else tensor.shape
        dims = [dim for dim, size in enumerate(tensor.shape) if size != shape[dim]]
        if dims and (len(dims) > 1 or (tensor.shape[dims[0]], shape[dims[0]]) != (rows, len(keep))):
            raise ValueError(
                f"prune.vocabulary: {name} of a {kind} depends on the vocabulary otherwise than by a row a token, "
                f"{list(tensor.shape)} and {list(shape)}: leave prune.vocabulary out"
            )
        less = tensor.detach().index_select(dims[0], index.to(tensor.device)) if dims else tensor.detach()
        if dims or (tensor.ndim > 1 and isinstance(tensor, nn.Parameter)):
            copies[id(tensor)] = nn.Parameter(less, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else less
    small = copy.deepcopy(dense, copies)
    for owner in _owners(small):
        _renumber(owner, rows, len(keep), ids)
    _adopt(small, whole, built)
    return small


def _built(dense: PreTrainedModel, config: PreTrainedConfig) -> nn.Module:
    """Builds a model of the class of another one without its weights."""
    model_class: Any = type(dense)
    with torch.device("meta"):
        built: nn.Module = model_class(copy.deepcopy(config))
    return built


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Maps names to parameters and buffers; tied ones stand there under each of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _adopt(small: nn.Module, whole: nn.Module, built: nn.Module) -> None:
    """Gives modules the numbers that follow from the vocabulary, in place: how many rows, which id is padding."""
    modules, others = dict(small.named_modules()), dict(whole.named_modules())
    for path, new in built.named_modules():
        if path in modules and path in others:
            old = vars(others[path])
            for name, value in vars(new).items():
                if type(value) is int and old.get(name) != value:
                    setattr(modules[path], name, value)


def _owners(model: PreTrainedModel) -> Iterator[Any]:
    """Gives every config of a model once: its own, those of its parts, and that of generation."""
    configs = (getattr(module, "config", None) for module in model.modules())
    yield from _with_parts([config for config in configs if isinstance(config, PreTrainedConfig)])
    if getattr(model, "generation_config", None) is not None:
        yield model.generation_config


def _with_parts(configs: list[PreTrainedConfig]) -> Iterator[PreTrainedConfig]:
    """Gives configs and those inside of them, each once."""
    seen: set[int] = set()
    while configs:
        config = configs.pop()
        if id(config) not in seen:
            seen.add(id(config))
            configs += [part for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
            yield config


def _fields(owner: Any) -> dict[str, Any]:
    """Maps the fields of a config that name tokens to what they hold."""
    return {name: value for name, value in vars(owner).items() if IDS.fullmatch(name)}


def _flat(value: Any) -> Iterator[int]:
    """Gives the ids in a field, which is an id, a list of them, a list of lists or none."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _flat(part)
    elif type(value) is int:
        yield value


def _renumber(owner: Any, rows: int, kept: int, ids: Mapping[int, int]) -> None:
    """Lets a config, without its parts, speak of the tokens that stay, in place."""
    if vars(owner).get("vocab_size") == rows:
        owner.vocab_size = kept
    for name, value in _fields(owner).items():
        setattr(owner, name, _renumbered(value, ids))


def _renumbered(value: Any, ids: Mapping[int, int]) -> Any:
    """Gives what a field holds with new ids."""
    if isinstance(value, (list, tuple)):
        return [_renumbered(part, ids) for part in value]
    return ids.get(value, value) if type(value) is int else value
