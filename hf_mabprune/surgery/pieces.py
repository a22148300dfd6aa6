"""Hands on the weights of the smaller model a layer at a time, so that a second whole model never has to exist."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.surgery.cut import Layout, cut_layers, smaller_config
from hf_mabprune.surgery.layers import Stay, layers_gone

Piece = dict[str, Tensor]


def pieces(dense: PreTrainedModel, keep: KeepIndices, layout: Layout) -> Iterator[Piece]:
    """Gives the state dict of `cut(dense, keep, layout)` in pieces: what is outside the layers, then each layer.

    A piece is made when it is asked for, and is the caller's own from then on: nothing here holds it. What is not cut
    shares its memory with the dense model. Of tied weights, the one that transformers saves is there, once. Names are
    those of the modules, as `save_pretrained(save_original_format=False)` writes them.

    Args:
        dense: Supported model; it is not changed.
        keep: Unit indices that stay; layers that it does not name stay whole. Of layers that go as a whole there is no
            piece.
        layout: Layout that has to be able to express the sizes.

    Raises:
        ValueError: As for `cut`, at once, before anything is cut.
    """
    smaller_config(dense, keep, layout)
    return _pieces(dense, cut_layers(dense, keep), Stay(dense, layers_gone(dense, keep)[0]))


def _pieces(dense: PreTrainedModel, layers: Iterator[dict[str, Tensor]], stay: Stay) -> Iterator[Piece]:
    # No piece is ever given a name here: a generator keeps what its names hold while it waits.
    base = "" if dense.base_model is dense else f"{dense.base_model_prefix}."
    paths = [layer.path for layer in architecture_of(dense).layers(dense)]
    names = _unsaved_names(dense)
    prefixes = tuple(f"{base}{path}." for path in paths)
    yield {
        name: tensor
        for name, tensor in dense.state_dict().items()
        if name not in names and not name.startswith(prefixes)
    }
    for path in paths:
        layer = dense.base_model.get_submodule(path)
        if stay.renamed(path) is None:
            next(layers)
            continue
        yield _layer(layer.state_dict(prefix=f"{base}{path}."), base, next(layers), names, stay)


def _layer(piece: Piece, base: str, smaller: dict[str, Tensor], unsaved: set[str], stay: Stay) -> Piece:
    """Puts the cut parameters of one layer in the place of the dense ones, under the names that they have now."""
    piece.update({f"{base}{path}": parameter.detach() for path, parameter in smaller.items()})
    kept = {name: tensor for name, tensor in piece.items() if name not in unsaved}
    return {f"{base}{stay.renamed(name.removeprefix(base))}": tensor for name, tensor in kept.items()}


def _unsaved_names(dense: PreTrainedModel) -> set[str]:
    """Names the tensors that a checkpoint of the model leaves out: copies of tied ones, and what its class leaves."""
    state = dense.state_dict()
    return set(state) - set(remove_tied_weights_from_state_dict(dict(state), dense)) | set(
        dense._keys_to_ignore_on_save or ()
    )
