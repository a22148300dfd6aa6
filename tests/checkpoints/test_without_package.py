"""Pruned models of every family load where this package is not, by the file that lies beside their weights."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.surgery.cut import cut
from tests.checkpoints.outside import loaded_outside
from tests.problems import selection
from tests.shows import Shows, kinds_cut
from tests.tiny_models import NOTHING, deep_model, head_of, inputs_for, keep_for, tiny_model, without_last

TWICE = ("gpt2", "t5", "vit", "mixtral")
LAYERS = ("bart", "bert", "gemma3_text", "gpt2", "t5")  # that lose a whole layer, and units of others
WHOLE = ("bert", "gemma3_text", "gpt2", "llama")  # that lose a whole FFN and, where two layers allow it, an attention


@pytest.mark.whole
def test_pruned_models_load_where_the_package_is_not(tmp_path: Path, shows: Shows) -> None:
    asked, expected = [], []

    def ask(model: PreTrainedModel, folder: str) -> None:
        asked.append((head_of(model_type), tmp_path / folder, inputs_for(model, head_of(model_type))))
        save_checkpoint(model, asked[-1][1], None, torch.float32)
        with torch.no_grad():
            expected.append(model(**asked[-1][2])[0].flatten())

    for model_type in ARCHITECTURES.names():
        model = dense = tiny_model(model_type, head_of(model_type))
        for number in range(1 + (model_type in TWICE)):
            keep = keep_for(model, "per_layer", seed=number)
            shows("without the package", model_type, kinds_cut(model, keep), "per_layer")
            model = cut(model, keep, "per_layer")
            ask(model, f"{model_type}-{number}")
        if model_type in WHOLE:
            ask(cut(dense, without_last(dense), "per_layer"), f"{model_type}-whole")
    for model_type in LAYERS:
        model = deep_model(model_type)
        model = cut(model, keep_for(model, "per_layer"), "per_layer")
        gone = architecture_of(model).whole_layers(model)[0].name
        ask(cut(model, {gone: NOTHING}, "per_layer"), f"{model_type}-layer")
    assert len(asked) == len(ARCHITECTURES.names()) + len(TWICE) + len(WHOLE) + len(LAYERS)
    for (_, folder, _), mine, (package, theirs) in zip(asked, expected, loaded_outside(asked, tmp_path), strict=True):
        assert package == "transformers_modules", f"{folder.name}: {theirs}"
        assert (torch.tensor(theirs) - mine).abs().max() < 1e-5, folder.name


@pytest.mark.slow
def test_models_of_equal_layers_load_where_the_package_is_not(tmp_path: Path, shows: Shows) -> None:
    """As those of transformers that they are."""
    asked, expected = [], []
    for model_type in ARCHITECTURES.names():
        model = tiny_model(model_type, head_of(model_type))
        keep = selection(model, "uniform")
        shows("without the package", model_type, kinds_cut(model, keep), "uniform")
        small = cut(model, keep, "uniform")
        asked.append((head_of(model_type), tmp_path / model_type, inputs_for(model, head_of(model_type))))
        save_checkpoint(small, tmp_path / model_type, None, torch.float32)
        with torch.no_grad():
            expected.append(small(**asked[-1][2])[0].flatten())
    for (_, folder, _), mine, (package, theirs) in zip(asked, expected, loaded_outside(asked, tmp_path), strict=True):
        assert package == "transformers", f"{folder.name}: {theirs}"
        assert (torch.tensor(theirs) - mine).abs().max() < 1e-5, folder.name
