"""What of a checkpoint may be published: files that are whole, belong together and lie in its folder."""

import os
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub.utils import filter_repo_objects
from transformers import CONFIG_MAPPING

from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts.fit import check_code, fitted_model, is_per_layer, refuse_not_finite, stored_tensors
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checkpoints.load import sizes_in
from hf_mabprune.checkpoints.modeling_file import MODELING_FILE
from hf_mabprune.checkpoints.stored_files import read_json

SEARCH_STATES = f"{RunFolder('').search_state.with_suffix('').as_posix()}*"  # of any format there has been
EXAMPLES = RunFolder("").examples.as_posix()  # answers to examples that may be private
STAYS_HERE = [EXAMPLES, ".*", "*/.*", SEARCH_STATES, "*.lock", "*.lock/*", "*.partial", "*.partial/*"]
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "preprocessor_config.json",
    "processor_config.json",
    "table_processor.json",
)


def check_complete(folder: Path) -> None:
    """Refuses a folder that `from_pretrained` could not load.

    Raises:
        FileNotFoundError: Naming the missing file.
        ValueError: If config.json or the index of the shards is no JSON.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}: give the output.dir of a finished run")
    needed = ["config.json"]
    if (folder / "config.json").is_file():
        needed += _code_files(read_json(folder / "config.json").get("auto_map") or {})
    for index in sorted(folder.glob("*.safetensors.index.json")):
        needed += sorted(set(read_json(index).get("weight_map", {}).values()))
    missing = [name for name in needed if not (folder / name).is_file()]
    if not missing and not any(folder.glob("*.safetensors")):
        missing = ["*.safetensors"]
    if missing:
        raise FileNotFoundError(
            f"a checkpoint needs {missing[0]}, {folder} has none: give "
            f"{sizes_in(folder) or 'the output.dir of a finished run'}"
        )


def _code_files(auto_map: dict[str, Any]) -> list[str]:
    """Lists the files beside the weights that an auto_map names; `owner/name--module.Class` lives elsewhere."""
    names = [name for name in auto_map.values() if isinstance(name, str) and "--" not in name]
    return sorted({f"{name.split('.')[0]}.py" for name in names})


def publishable_files(folder: Path) -> dict[str, Path]:
    """Finds everything below a folder that is published: name in the repository -> file.

    Raises:
        ValueError: For a link that leads out of the folder or nowhere, and for what is no file: a pipe, a device.
    """
    home, found = folder.resolve(), {}
    for name, path in checksums.visible_files(folder):
        if not list(filter_repo_objects([name], ignore_patterns=STAYS_HERE)):
            continue
        place = path.resolve()
        if path.is_symlink() and not (home in place.parents and place.is_file()):
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}, not to a file in this folder: nothing outside it is "
                "published; put a copy there, or take it away"
            )
        if not path.is_file():
            raise ValueError(f"{path} is no plain file: take it away")
        found[name] = path
    return found


def check_fit(folder: Path, of_run: bool) -> None:
    """Refuses weights that are not whole or do not fit their config, and code that is not this package's.

    Models whose own code says what they are cannot be built without running it: that is a warning.

    Args:
        folder: Checkpoint.
        of_run: Whether it is the output of a run, of a model without code of its own.

    Raises:
        ValueError: Saying what does not fit.
    """
    stored_tensors(folder)
    refuse_not_finite(folder)
    settings = read_json(folder / "config.json")
    ours = of_run or is_per_layer(settings) or (folder / MODELING_FILE).exists()
    if ours:
        check_code(folder)
    elif settings.get("auto_map"):
        warnings.warn(f"{folder} brings code of its own, so whether its weights fit was not checked", stacklevel=2)
        return
    elif settings.get("model_type") not in CONFIG_MAPPING:
        warnings.warn(
            f"this transformers does not know {folder}, so whether its weights fit was not checked", stacklevel=2
        )
        return
    fitted_model(folder, spare=not ours)


def check_foreign_processor(folder: Path) -> None:
    """Warns where a checkpoint that is of no run comes without what makes its inputs."""
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        warnings.warn(
            f"{folder} holds neither tokenizer nor processor, so nobody can use it without the dense model's: save it "
            "beside the weights",
            stacklevel=2,
        )


def check_run_unchanged(run: RunFolder) -> None:
    """Refuses a run whose files have changed since it wrote them, but for the card, which is written again anyway."""
    if not run.checksums.exists():
        warnings.warn(f"{run.root} has no {run.checksums.name}: it is published as it lies there", stacklevel=3)
        return
    passed = f"{run.card.name} "
    found = [
        fault
        for fault in checksums.faults(run.root, run.checksums)
        if not fault.startswith(passed) and not fault.endswith(checksums.NEW)
    ]
    if found:
        raise ValueError(
            f"{run.root} is not as its run wrote it: {found[0]}; bring it back, or remove {run.checksums} if you "
            "meant to change it"
        )
