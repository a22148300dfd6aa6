"""Hands on the weights of the smaller model a layer at a time, so that a second whole model never has to exist."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.surgery.cut import Layout, cut_sites, smaller_config

Piece = dict[str, Tensor]


def pieces(dense: PreTrainedModel, keep: KeepIndices, layout: Layout) -> Iterator[Piece]:
    """Gives the state dict of `cut(dense, keep, layout)` in pieces: what is outside the layers, then each layer.

    A piece is made when it is asked for, and is the caller's own from then on: nothing here holds it. What is not cut
    shares its memory with the dense model. Of tied weights, the one that transformers saves is there, once. Names are
    those of the modules, as `save_pretrained(save_original_format=False)` writes them.

    Args:
        dense: Supported model; it is not changed.
        keep: Unit indices that stay; layers that it does not name stay whole.
        layout: Layout that has to be able to express the sizes.

    Raises:
        ValueError: As for `cut`, at once, before anything is cut.
    """
    smaller_config(dense, keep, layout)
    return _pieces(dense, cut_sites(dense, keep))


def _pieces(dense: PreTrainedModel, sites: Iterator[tuple[Site, dict[str, nn.Linear]]]) -> Iterator[Piece]:
    # No piece is ever given a name here: a generator keeps what its names hold while it waits.
    architecture = architecture_of(dense)
    base = "" if dense.base_model is dense else f"{dense.base_model_prefix}."
    layers = architecture.layer_list(dense)
    prefixes = [f"{base}{architecture.layers}.{number}." for number in range(len(layers))]
    count = Counter(site.layer for site in architecture.sites(dense))
    names = _saved_names(dense)
    yield {
        name: tensor
        for name, tensor in dense.state_dict().items()
        if name in names and not name.startswith(tuple(prefixes))
    }
    for number, prefix in enumerate(prefixes):
        yield _layer(layers[number].state_dict(prefix=prefix), base, islice(sites, count[number]), names)


def _layer(
    piece: Piece, base: str, sites: Iterator[tuple[Site, dict[str, nn.Linear]]], names: set[str]
) -> Piece:
    """Puts the cut projections of one layer in the place of the dense ones."""
    for _, projections in sites:
        for path, linear in projections.items():
            piece.update(linear.state_dict(prefix=f"{base}{path}."))
    return {name: tensor for name, tensor in piece.items() if name in names}


def _saved_names(dense: PreTrainedModel) -> set[str]:
    """Names the tensors that a checkpoint of the model holds: tied ones once, without what the class leaves out."""
    saved = remove_tied_weights_from_state_dict(dense.state_dict(), dense)
    return set(saved) - set(dense._keys_to_ignore_on_save or ())
