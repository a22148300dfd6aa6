"""Pruned models of every family load where this package is not, by the file that lies beside their weights."""

from pathlib import Path

import pytest
import torch

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.surgery.cut import cut
from tests.checkpoints.outside import loaded_outside
from tests.tiny_models import head_of, inputs_for, keep_for, tiny_model

TWICE = ("gpt2", "t5", "vit", "mixtral")


@pytest.mark.whole
def test_pruned_models_load_where_the_package_is_not(tmp_path: Path) -> None:
    asked, expected = [], []
    for model_type in ARCHITECTURES.names():
        head = head_of(model_type)
        model = tiny_model(model_type, head)
        for number in range(1 + (model_type in TWICE)):
            model = cut(model, keep_for(model, "per_layer", seed=number), "per_layer")
            asked.append((head, tmp_path / f"{model_type}-{number}", inputs_for(model, head)))
            save_checkpoint(model, asked[-1][1], None, torch.float32)
            with torch.no_grad():
                expected.append(model(**asked[-1][2])[0].flatten())
    assert len(asked) == len(ARCHITECTURES.names()) + len(TWICE)
    for (_, folder, _), mine, (package, theirs) in zip(asked, expected, loaded_outside(asked, tmp_path), strict=True):
        assert package == "transformers_modules", f"{folder.name}: {theirs}"
        assert (torch.tensor(theirs) - mine).abs().max() < 1e-5, folder.name
