"""Makes a Llama of random weights, as large as one likes, to see what memory a run takes. It has learnt nothing.

python -m research.models.random_llama --tokenizer examples/quickstart/model --out runs/models/random-llama-1b
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

SIZES: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}  # 1.03e9 parameters


def make(tokenizer: str, out: Path, dtype: str = "bfloat16", **sizes: int) -> int:
    """Makes the model and saves it with a tokenizer; gives its number of parameters.

    Args:
        tokenizer: Folder or Hub name of a tokenizer of no more tokens than the vocabulary has.
        out: Folder of the model.
        dtype: Precision of its weights.
        sizes: Fields of the configuration that differ from `SIZES`.
    """
    set_seed(0)
    settings = {**SIZES, **sizes}
    config = LlamaConfig(**settings, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)
    return int(model.num_parameters())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or Hub name of a tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    options = parser.parse_args()
    make(options.tokenizer, options.out)
