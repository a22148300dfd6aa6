"""Writes a pruned Llama, its sizes per layer too, as a GGUF file that llama.cpp reads.

pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
python -m research.gguf DIR OUT.gguf --llama-cpp llama_cpp_python-0.3.36/vendor/llama.cpp

Uniform checkpoints need nothing of this: `convert_hf_to_gguf.py DIR --outtype f32 --outfile OUT.gguf`, of the same
source, reads them. Of sizes per layer, llama.cpp's architecture `deci` is a Llama whose heads and widths are arrays
(src/models/deci.cpp); its `llama`, and most others, read the sizes of the first layer for all (LLAMA_LOAD_LOCALS in
src/llama-model.h), however the file puts them.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import hf_mabprune  # noqa: F401  # without it transformers asks whether the code beside per-layer weights may run

CONFIG = "config.json"
LLAMA = "mabprune_llama"
FIELDS = ("intermediate_size", "num_attention_heads", "num_key_value_heads")


def sizes_of(config: dict[str, Any]) -> list[dict[str, int]]:
    """Reads the sizes of every layer, field -> size, from the contents of a per-layer config.json.

    Raises:
        ValueError: If llama.cpp has no architecture for them.
    """
    if config.get("model_type") != LLAMA:
        raise ValueError(
            f"of sizes per layer, llama.cpp reads those of a Llama alone, got {config.get('model_type')!r:.60}: use "
            "layout uniform"
        )
    if config["mabprune"].get("empty"):
        raise ValueError("llama.cpp's deci drops what an attention adds in a layer without an FFN: use layout uniform")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"llama.cpp's deci has no activation but silu, got {config['hidden_act']!r:.60}")
    own = {int(number): fields for number, fields in (config.get("per_layer_config") or {}).items()}
    shared = {field: config[field] for field in FIELDS}
    return [{**shared, **own.get(number, {})} for number in range(config["num_hidden_layers"])]


def convert(folder: Path, file: Path, llama_cpp: Path, any_tokenizer: bool = False) -> None:
    """Writes a GGUF file of 32 bits.

    Args:
        folder: Checkpoint of a Llama with sizes per layer, or any uniform one that llama.cpp's converter reads.
        file: File to write.
        llama_cpp: Folder of llama.cpp's source, with `convert_hf_to_gguf.py`.
        any_tokenizer: Takes a byte-level tokenizer that llama.cpp does not know for that of GPT-2, which may split
            texts in other places; what tokens give is not touched.

    Raises:
        ValueError: If llama.cpp cannot read such a model.
        NotImplementedError: If the converter does not know its class or its tokenizer.
    """
    config = json.loads((folder / CONFIG).read_text())
    layers = sizes_of(config) if "mabprune" in config else None
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    conversion = importlib.import_module("conversion")
    gguf = importlib.import_module("gguf")
    if layers is None:
        reader = conversion.get_model_class(config["architectures"][0])
    else:
        reader = _per_layer(importlib.import_module("conversion.llama").LlamaModel, layers, gguf.MODEL_ARCH.DECI)
    if any_tokenizer:
        changes = {"model_arch": reader.model_arch, "get_vocab_base_pre": lambda *_: "gpt-2"}
        reader = type(reader.__name__, (reader,), changes)
    reader(folder, gguf.LlamaFileType.ALL_F32, file).write()


def _per_layer(llama: Any, layers: list[dict[str, int]], architecture: Any) -> type:
    """Makes llama.cpp's reader of Llamas one of sizes per layer."""

    class PerLayer(llama):
        model_arch = architecture
        hparams: Any

        def set_gguf_parameters(self) -> None:
            super().set_gguf_parameters()
            widths, heads, groups = ([sizes[field] for sizes in layers] for field in FIELDS)
            self.gguf_writer.add_feed_forward_length(widths)
            self.gguf_writer.add_head_count(heads)
            self.gguf_writer.add_head_count_kv(groups)
            size = self.hparams.get("head_dim") or self.hparams["hidden_size"] // self.hparams["num_attention_heads"]
            self.gguf_writer.add_key_length(size)  # else the hidden size over the heads of the first layer
            self.gguf_writer.add_value_length(size)

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
            shared = self.hparams
            try:  # whose heads say how rows of queries and keys are to be put into llama.cpp's order
                self.hparams = {**shared, **(layers[bid] if bid is not None else {})}
                yield from super().modify_tensors(data_torch, name, bid)
            finally:
                self.hparams = shared

    return PerLayer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoint")
    parser.add_argument("file", type=Path, help="GGUF file to write")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of llama.cpp's source")
    parser.add_argument("--any-tokenizer", action="store_true", help="take any byte-level one for GPT-2's")
    options = parser.parse_args()
    convert(options.folder, options.file, options.llama_cpp, options.any_tokenizer)
