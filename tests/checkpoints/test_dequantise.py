"""Packed weights are loaded as what they stand for, into ordinary models, when somebody asks for that."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.checkpoints.dequantise import dequantised, dequantising
from hf_mabprune.checkpoints.load import load_config, load_weights
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.surgery.cut import cut
from tests.packed import Tensors, pack_fp8, pack_mxfp4
from tests.seeds import moved
from tests.tiny_models import keep_of, tiny_model

HEAD = "AutoModelForCausalLM"


def load(folder: Path, places: dict[str, Any] | None = None, **options: Any) -> PreTrainedModel:
    config, file = load_config(str(folder), **options), options.get("gguf_file")
    unpacking = dequantising(config, str(folder), True, file, bool(places))
    return load_weights(HEAD, str(folder), places, dtype=torch.float32, **options, **unpacking)


def assert_ordinary(model: PreTrainedModel, weights: Tensors, folder: Path) -> None:
    """A model of these weights, which is saved as such."""
    assert not getattr(model, "is_quantized", False) and getattr(model, "hf_quantizer", None) is None
    model.save_pretrained(folder)
    assert "quantization_config" not in (folder / "config.json").read_text()
    saved, held = load_file(folder / "model.safetensors"), model.state_dict()
    for name, weight in weights.items():
        torch.testing.assert_close(held[name], weight, rtol=1e-6, atol=0)
        torch.testing.assert_close(saved[name], weight, rtol=1e-6, atol=0)


@pytest.fixture
def fp8(tmp_path: Path) -> tuple[Path, Tensors]:
    tiny_model("llama", HEAD).save_pretrained(tmp_path / "fp8")
    return tmp_path / "fp8", pack_fp8(tmp_path / "fp8")


@pytest.mark.parametrize("places", [None, {"device_map": {"": "disk"}, "offload_folder": None}])
def test_fp8_weights_are_what_their_blocks_stand_for(
    places: dict[str, Any] | None, fp8: tuple[Path, Tensors], tmp_path: Path
) -> None:
    folder, weights = fp8
    assert_ordinary(load(folder, places), weights, tmp_path / "saved")


def test_what_is_loaded_without_a_word_is_not_packed_again(fp8: tuple[Path, Tensors], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(fp8[0], dtype=torch.float32)
    if getattr(model, "is_quantized", False):
        pytest.skip("a device here computes with FP8")
    small = cut(model, keep_of(model, {0: range(8), 1: range(8)}), "uniform")
    small.save_pretrained(tmp_path / "small")
    saved = load_file(tmp_path / "small" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


def test_mxfp4_experts_are_what_their_blocks_stand_for(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_local_experts": 4}
    tiny_model("gpt_oss", HEAD, num_experts_per_tok=2, **sizes).save_pretrained(tmp_path / "mxfp4")
    weights = pack_mxfp4(tmp_path / "mxfp4", torch.Generator().manual_seed(moved(0)))
    assert_ordinary(load(tmp_path / "mxfp4"), weights, tmp_path / "saved")


def test_gguf_files_are_read_with_their_tokenizer(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    weights = write_gguf(gguf, tmp_path / "tiny.gguf")
    model = load(tmp_path, gguf_file="tiny.gguf")
    assert_ordinary(model, weights, tmp_path / "saved")
    assert load_config(str(tmp_path), gguf_file="tiny.gguf").architectures == ["LlamaForCausalLM"]
    tokenizer = load_processor("AutoTokenizer", str(tmp_path), gguf_file="tiny.gguf")
    tokenizer.save_pretrained(tmp_path / "saved")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "saved")("a c")["input_ids"]
    assert tokens == tokenizer("a c")["input_ids"] and tokens[-2:] == [7, 9]


def write_gguf(gguf: Any, file: Path) -> Tensors:
    """A tiny llama with projections of eight bits; gives its weights as they are unpacked."""
    model = tiny_model("llama", HEAD, hidden_size=32, intermediate_size=64, num_key_value_heads=4)
    config, kind = model.config, gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    words = ["<unk>", "<s>", "</s>", "\u2581", *"abc", *(f"\u2581{letter}" for letter in "abc")]
    words += [f"<{number}>" for number in range(config.vocab_size - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(number) for number in range(len(words))])
    writer.add_token_types([2, 3, 3] + [1] * (len(words) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names, unpacked = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers), {}
    for name, weight in model.state_dict().items():
        stored, unpacked[name] = weight, weight
        if weight.ndim == 2:
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns pairs of neighbours
                stored = weight.unflatten(0, (config.num_attention_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
            unpacked[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
        place = names.get_name(name, try_suffixes=(".weight",))
        packed = gguf.quantize(stored.numpy(), kind) if weight.ndim == 2 else stored.numpy()
        writer.add_tensor(place, packed, raw_dtype=kind if weight.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unpacked


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, OSError)) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_nobody_asked_for_is_refused_with_the_remedy(fp8: tuple[Path, Tensors]) -> None:
    folder, _ = fp8
    config = load_config(str(folder))
    assert "model.dequantize: true" in refusal(lambda: dequantising(config, "it", False))
    plain = tiny_model("llama", HEAD).config
    assert dequantising(plain, "it", False) == {}
    assert refusal(lambda: dequantising(plain, "it", True)) == "it is not quantised: leave model.dequantize out"


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "torchao", "aqlm", "no such"])
@pytest.mark.parametrize("wanted", [True, False])
def test_methods_that_cannot_be_undone_are_named(method: str, wanted: bool) -> None:
    config = tiny_model("llama", HEAD).config
    config.quantization_config = {"quant_method": method}
    said = refusal(lambda: dequantising(config, "it", wanted))
    assert f"it is quantised by {method}, which cannot be undone" in said and "mxfp4" in said
    assert "model.dequantize" not in said


def test_bitsandbytes_is_undone_in_memory_alone() -> None:
    config = tiny_model("llama", HEAD).config
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert dequantising(config, "it", True) == {"dequantize": True}
    assert "leave model.device_map out" in refusal(lambda: dequantising(config, "it", True, spread=True))


@pytest.mark.parametrize("stated", ["fp8", {"quant_method": "fp8", "weight_block_size": [0]}])
def test_what_says_nonsense_of_its_weights_is_refused(stated: Any) -> None:
    config = tiny_model("llama", HEAD).config
    config.quantization_config = stated
    assert "it " in refusal(lambda: dequantising(config, "it", True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn])
def test_weights_that_stay_packed_are_refused(dtype: torch.dtype) -> None:
    model = tiny_model("llama", HEAD)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to(dtype), requires_grad=False)
    said = refusal(lambda: dequantised(model, torch.float32, "it"))
    assert said == f"it cannot be dequantised: lm_head.weight is {dtype} still"


def test_a_packed_file_does_not_allow_a_model_of_any_size(fp8: tuple[Path, Tensors]) -> None:
    folder, _ = fp8
    config = (folder / "config.json").read_text().replace('"vocab_size": 64', '"vocab_size": 9000000')
    (folder / "config.json").write_text(config)
    assert "asks for clearly more parameters" in refusal(lambda: load(folder))


def test_folders_of_gguf_files_say_how_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    for given in (tmp_path, tmp_path / "tiny.gguf"):
        said = refusal(lambda: load_config(str(given)))  # noqa: B023
        assert f"set model.name: {tmp_path}, model.gguf_file: tiny.gguf and model.dequantize: true" in said
    assert "holds no other.gguf" in refusal(lambda: load_config(str(tmp_path), gguf_file="other.gguf"))
    assert "tiny.gguf cannot be read" in refusal(lambda: load_config(str(tmp_path), gguf_file="tiny.gguf"))


def test_models_in_memory_that_are_packed_are_refused() -> None:
    model = tiny_model("llama", HEAD)
    model.is_quantized = True
    assert "model.dequantize: true" in refusal(lambda: architecture_of(model))
