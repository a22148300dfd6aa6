"""llama.cpp: a GGUF file, written by its converter, read by llama-cpp-python."""

import json
import os
import subprocess
from pathlib import Path
from typing import ClassVar

import torch

from hf_mabprune.places import PLACES, Found, Place, Subject, Untried
from hf_mabprune.places.elsewhere import run_elsewhere
from research.gguf import CONFIG, sizes_of

SOURCE = "LLAMA_CPP"  # variable of the environment: the folder of llama.cpp's source
CONVERTER = "convert_hf_to_gguf.py"
REMEDY = (
    "pip install llama-cpp-python==0.3.36 torch transformers sentencepiece, unpack the source of the same package "
    f"(pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36), set {SOURCE}=.../vendor/llama.cpp and "
    "--python llama_cpp=PATH"
)
UNKNOWN = "pre-tokenizer was not recognized"
LINES = """
import numpy as np
import torch
from llama_cpp import GGML_TYPE_F32, Llama
ids, there = inputs["input_ids"], inputs["attention_mask"].bool()
exact = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}  # keys and values, else in 16 bits
length = ids.shape[1]
llama = Llama("model.gguf", n_ctx=length, n_batch=length, n_threads=1, logits_all=True, verbose=False, **exact)
outputs = torch.zeros(*ids.shape, llama.n_vocab())
for row, (tokens, counted) in enumerate(zip(ids, there)):
    llama.reset()
    llama.eval(tokens[counted].tolist())
    outputs[row, counted] = torch.from_numpy(np.array(llama.scores[: int(counted.sum())], dtype=np.float32))
"""


@PLACES.register("llama_cpp")
class LlamaCpp(Place):
    """llama.cpp, by its own converter; of sizes per layer Llamas alone, as its architecture `deci`.

    Weights, keys and values in 32 bits, on one thread. Where llama.cpp looks GELU up in a table of 16 bits
    (GGML_GELU_FP16 in ggml/src/ggml-cpu/vec.h), as for Gemma 3 270M, logits differ by 0.05, partly by that.
    """

    tolerance: ClassVar[float] = 0.1

    def cannot(self, subject: Subject) -> str:
        """See `Place.cannot`."""
        if not subject.generates:
            return "compared here for decoders alone"
        try:
            if subject.layout == "per_layer":
                sizes_of(json.loads((subject.folder / CONFIG).read_text()))
        except ValueError as reason:
            return str(reason)
        return ""

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        how = "python -m research.gguf DIR OUT.gguf --llama-cpp SOURCE"
        return how if subject.layout == "per_layer" else f"python {CONVERTER} DIR --outtype f32 --outfile OUT.gguf"

    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        source, python = os.environ.get(SOURCE), subject.pythons.get("llama_cpp")
        if not source or not python:
            raise Untried(REMEDY)
        folder, file = str(subject.folder.resolve()), str(work / "model.gguf")
        if subject.layout == "per_layer":
            command = ["-m", "research.gguf", folder, file, "--llama-cpp", source]
        else:
            command = [str(Path(source) / CONVERTER), folder, "--outtype", "f32", "--outfile", file]
        note = ""
        if UNKNOWN in (said := _said(python, command)):
            command = ["-m", "research.gguf", folder, file, "--llama-cpp", source, "--any-tokenizer"]
            said = _said(python, command)
            note = (
                "; its converter does not know the tokenizer, nor that of the dense model: logits of the same tokens"
            )
        if not Path(file).exists():
            raise RuntimeError((said.strip().splitlines() or ["no file was written"])[-1])
        logits: torch.Tensor = run_elsewhere(LINES, subject, work, python)
        there = subject.inputs["attention_mask"].bool()
        others = int((logits.argmax(-1) != subject.expected.argmax(-1))[there].sum())
        same = f"the likeliest token is another one at {others} of {int(there.sum())} positions"
        return Found(subject.difference(logits), note=f"{same}{note}")


def _said(python: str, command: list[str]) -> str:
    """Runs a Python command from the root of the repository, and gives what it said where it failed."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    options = {"cwd": root, "env": environment, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run([python, *command], check=False, **options)  # type: ignore[call-overload]
    return done.stderr if done.returncode else ""
