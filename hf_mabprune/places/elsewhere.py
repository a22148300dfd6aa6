"""Another process, which runs lines on the inputs of a checkpoint and gives back what they make of them."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_mabprune.places.subject import Subject

BEFORE = """
import sys
{block}
from safetensors.torch import load_file, save_file
inputs, folder = load_file("inputs.safetensors"), {folder!r}
"""
AFTER = """
save_file({"outputs": outputs.detach().float().contiguous()}, "outputs.safetensors")
"""
BLOCK = 'sys.modules["hf_mabprune"] = None  # an import of it fails'
LONGEST = 600  # seconds


def run_elsewhere(
    lines: str, subject: Subject, work: Path, python: str = sys.executable, with_package: bool = False
) -> torch.Tensor:
    """Runs lines in another process, which finds `inputs` and `folder`, and sets `outputs`.

    Args:
        lines: Python code.
        subject: The checkpoint.
        work: Folder that the process works in.
        python: Python program, which has torch and safetensors.
        with_package: Whether it may import hf_mabprune.

    Returns:
        What the lines set `outputs` to, float32.

    Raises:
        RuntimeError: If the process fails, with the last line that it said.
    """
    save_file({name: tensor.contiguous() for name, tensor in subject.inputs.items()}, work / "inputs.safetensors")
    before = BEFORE.format(block="" if with_package else BLOCK, folder=str(subject.folder.resolve()))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules")}
    done = subprocess.run(
        [python, "-c", before + lines + AFTER],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(said[-1])
    return load_file(work / "outputs.safetensors")["outputs"]
