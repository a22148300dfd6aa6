"""A checkpoint that was written a layer at a time is the one that save_pretrained writes, in one file or in many."""

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedModel

from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.checkpoints.sharded import save_sharded
from hf_mabprune.surgery.cut import Layout, cut, smaller_class, smaller_config
from hf_mabprune.surgery.pieces import pieces
from tests.problems import selection
from tests.tiny_models import heads_of, keep_for, outputs_of, tiny_model
from tests.tiny_sizes import UNLIKE

SMALL = 20_000  # bytes; a layer of a tiny model has more
RENAMED = (
    "mixtral",
    "vit",
    "gpt_neox",
)  # types whose stock classes save under names that are not those of their modules
HEADS = (
    "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM",
    "AutoModelForImageClassification",
)  # fmt: skip


def stream(
    dense: PreTrainedModel, keep: KeepIndices, layout: Layout, folder: Path, dtype: torch.dtype, **sizes: int
) -> int:
    """Writes the smaller model without building it."""
    config, model_class = smaller_config(dense, keep, layout), smaller_class(dense, layout)
    given = {"generation_config": dense.generation_config} if dense.can_generate() else {}
    return save_sharded(pieces(dense, keep, layout), config, model_class, folder, dtype, **sizes, **given)


def save(small: PreTrainedModel, folder: Path, dtype: torch.dtype) -> int:
    """Writes a model that is in memory, under the names of its modules."""
    if small.config.model_type not in RENAMED:
        return save_checkpoint(small, folder, None, dtype)
    small.to(dtype).save_pretrained(folder, save_original_format=False)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize(
    ("model_type", "head"),
    [(each, head) for each in UNLIKE for head in HEADS if head in heads_of(each)],
)
def test_the_streamed_checkpoint_is_the_saved_one(model_type: str, head: str, layout: Layout, tmp_path: Path) -> None:
    dense = tiny_model(model_type, head)
    keep = selection(dense, layout)
    small = cut(dense, keep, layout)
    written = save(small, tmp_path / "saved", torch.float32)

    assert stream(dense, keep, layout, tmp_path / "streamed", torch.float32) == written
    assert contents(tmp_path / "streamed") == contents(tmp_path / "saved"), "byte by byte, every file"

    total = stream(dense, keep, layout, tmp_path / "shards", torch.float32, max_shard_bytes=written // 4)
    assert total == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.safetensors"))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again, report = getattr(transformers, head).from_pretrained(tmp_path / "shards", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert isinstance(again, smaller_class(dense, layout))
    for parameter in again.parameters():  # mapped files begin anywhere, and products round by where a matrix begins
        parameter.data = parameter.data.clone()
    assert torch.equal(outputs_of(again.eval(), head), outputs_of(small, head))


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_shards_have_the_names_and_the_index_of_transformers(layout: Layout, tmp_path: Path) -> None:
    dense = tiny_model("llama", "AutoModelForCausalLM")
    keep = keep_for(dense, layout)
    small = cut(dense, keep, layout)
    small.save_pretrained(tmp_path / "saved", max_shard_size=SMALL, save_original_format=False)
    stream(dense, keep, layout, tmp_path / "streamed", torch.float32, max_shard_bytes=SMALL)
    saved, streamed = (
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("saved", "streamed")
    )

    assert streamed["metadata"] == saved["metadata"]
    assert streamed["weight_map"].keys() == saved["weight_map"].keys()
    files = sorted(path.name for path in (tmp_path / "streamed").glob("model*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert sorted(set(streamed["weight_map"].values())) == files
    for file in files:
        shard = load_file(tmp_path / "streamed" / file)
        assert {name for name, place in streamed["weight_map"].items() if place == file} == set(shard)
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= SMALL
    expected = tensors(tmp_path / "saved")
    assert tensors(tmp_path / "streamed").keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(tmp_path / "streamed").items())
    assert (tmp_path / "streamed" / "modeling_pruned.py").exists() == (layout == "per_layer")
    assert not list((tmp_path / "streamed").glob("*.part"))


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("llama", "AutoModelForCausalLM"),
        ("bert", "AutoModelForMaskedLM"),
        ("gpt2", "AutoModelForCausalLM"),
        ("mixtral", "AutoModelForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM"),
    ],
)
def test_half_precision_and_tied_weights(model_type: str, head: str, layout: Layout, tmp_path: Path) -> None:
    dense = tiny_model(model_type, head, tie_word_embeddings=True)
    keep = selection(dense, layout)
    save(cut(dense, keep, layout), tmp_path / "saved", torch.bfloat16)
    stream(dense, keep, layout, tmp_path / "streamed", torch.bfloat16)
    again = getattr(transformers, head).from_pretrained(tmp_path / "streamed", dtype="auto")

    assert contents(tmp_path / "streamed") == contents(tmp_path / "saved")
    assert again.dtype == torch.bfloat16
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert {parameter.dtype for parameter in dense.parameters()} == {torch.float32}, "the dense model keeps its own"


def test_a_per_layer_config_names_the_classes_of_its_own_file(tmp_path: Path) -> None:
    dense = tiny_model("bert", "AutoModelForSequenceClassification")
    stream(dense, keep_for(dense, "per_layer"), "per_layer", tmp_path, torch.float32, max_shard_bytes=SMALL)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["MabpruneBertForSequenceClassification"]
    assert config["model_type"] == "mabprune_bert"
    assert config["auto_map"]["AutoModel"] == "modeling_pruned.MabpruneBertModel"


def test_generation_settings_are_the_dense_models(tmp_path: Path) -> None:
    dense = tiny_model("qwen2", "AutoModelForCausalLM")
    dense.generation_config.max_new_tokens = 7
    stream(dense, keep_for(dense, "uniform"), "uniform", tmp_path / "given", torch.float32)
    assert GenerationConfig.from_pretrained(tmp_path / "given").max_new_tokens == 7
    keep = keep_for(dense, "uniform")
    config = smaller_config(dense, keep, "uniform")
    save_sharded(pieces(dense, keep, "uniform"), config, type(dense), tmp_path / "own", torch.float32)
    assert GenerationConfig.from_pretrained(tmp_path / "own").eos_token_id == 2


def test_the_writer_lets_go_of_a_layer_before_the_next_is_made(tmp_path: Path) -> None:
    dense = tiny_model("llama", "AutoModelForCausalLM", num_hidden_layers=4)
    keep = keep_for(dense, "per_layer")
    held: list[int] = []

    def watched() -> Iterator[dict[str, torch.Tensor]]:
        alive: list[weakref.ref[torch.Tensor]] = []
        source = pieces(dense, keep, "per_layer")
        while (piece := next(source, None)) is not None:
            gc.collect()
            held.append(sum(ref() is not None for ref in alive))
            alive = [weakref.ref(tensor) for tensor in piece.values()]
            yield piece
            del piece

    save_sharded(
        watched(),
        smaller_config(dense, keep, "per_layer"),
        smaller_class(dense, "per_layer"),
        tmp_path,
        torch.bfloat16,
        max_shard_bytes=1,
    )
    assert held == [0] * 5


def test_a_folder_with_weights_is_left_alone(tmp_path: Path) -> None:
    dense = tiny_model("bert", "AutoModel")
    keep = keep_for(dense, "per_layer")
    stream(dense, keep, "per_layer", tmp_path, torch.float32)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds model.safetensors already: give an empty folder"):
        stream(dense, keep, "per_layer", tmp_path, torch.float32)
    assert contents(tmp_path) == before


def test_what_fails_half_way_leaves_no_weights_and_no_config(tmp_path: Path) -> None:
    dense = tiny_model("bert", "AutoModel")
    keep = keep_for(dense, "per_layer")

    def broken() -> Iterator[dict[str, torch.Tensor]]:
        yield next(pieces(dense, keep, "per_layer"))
        raise OSError("the disk is full")

    config = smaller_config(dense, keep, "per_layer")
    with pytest.raises(OSError, match="the disk is full"):
        save_sharded(broken(), config, smaller_class(dense, "per_layer"), tmp_path, torch.float32, max_shard_bytes=1)
    assert list(tmp_path.iterdir()) == []
