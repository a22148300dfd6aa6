"""Checkpoints loaded in a process that has transformers, and not this package."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SCRIPT = """
import json, sys
sys.path[:] = [path for path in sys.path if path not in ("", sys.argv[1])]
sys.modules["hf_mabprune"] = None
import torch, transformers
for auto, folder, inputs in json.load(sys.stdin):
    try:
        for number in range(2):  # as it was saved, and saved again
            model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
            for parameter in model.parameters():  # mapped files begin anywhere, which products round by
                parameter.data = parameter.data.clone()
            with torch.no_grad():
                outputs = model(**{name: torch.tensor(value) for name, value in inputs.items()})[0]
            folder += "-again"
            model.save_pretrained(folder, save_original_format=False)
        print(json.dumps([type(model).__module__.split(".")[0], outputs.flatten().tolist()]))
    except ValueError as error:
        print(json.dumps(["refused", str(error)]))
"""


def loaded_outside(asked: Sequence[tuple[str, Path, dict[str, torch.Tensor]]], folder: Path) -> list[tuple[str, Any]]:
    """Loads checkpoints, saves them again and loads that, all without the package.

    Args:
        asked: AutoModel class, checkpoint and inputs of each.
        folder: Where the process runs, and where it keeps the code that it trusts.

    Returns:
        For each the package that its class is from and its first output, flat; or `refused` and why.
    """
    lists = [
        (auto, str(checkpoint), {name: tensor.tolist() for name, tensor in inputs.items()})
        for auto, checkpoint, inputs in asked
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[2])],
        input=json.dumps(lists),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "HF_MODULES_CACHE": str(folder / "modules")},
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
