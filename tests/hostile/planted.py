"""Code that leaves a trace when it is run, for places where no code may be run from."""

from pathlib import Path

from tests.hostile.mutations import Random

MODULES = (
    "sitecustomize",
    "usercustomize",
    "conftest",
    "setup",
    "hf_mabprune",
    "torch",
    "yaml",
    "json",
    "transformers",
    "datasets",
    "accuracy",
    "parquet",
    "tokenizers",
    "numpy",
    "modeling_pruned",
    "evaluate",
    "models",
    "data",
    "bert",
    "race",
    "refit",
    "least_squares",
    "tensorboard",
    "tensorboardX",
    "matplotlib",
    "wandb",
)
NAMES = (
    "eps",
    "num_attention_heads",
    "all_head_size",
    "training",
    "forward",
    "__class__",
    "weight",
    "bias",
    "p",
    "dropout",
    "scaling",
    "attention_head_size",
    "is_causal",
    "_forward_hooks",
    "in_features",
    "out_features",
    "chunk_size_feed_forward",
    "seq_len_dim",
    "num_heads",
    "n_heads",
    "inner_dim",
    "dim",
    "intermediate_size",
    "position_bias",
    "hidden_states",
    "attention_mask",
    "relative_attention_bias",
    "has_relative_attention_bias",
    "num_experts",
    "split_size",
)


def canary_code(folder: Path, name: str) -> str:
    """Gives Python source that leaves a trace."""
    return f"\nopen({str(folder.parent / 'canary' / name)!r}, 'w').close()\n"


class Trace:
    """Is pickled as code that leaves a trace."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, (f"open({self.path!r}, 'w').close()",)


def loads_canary(folder: Path, name: str) -> Trace:
    """Gives an object that leaves a trace when its pickle is loaded."""
    return Trace(str(folder.parent / "canary" / name))


def plant_modules(folder: Path, rng: Random) -> None:
    """Fills a folder with modules, packages and data set scripts under the names of what a run imports."""
    for name in MODULES:
        code = canary_code(folder, name)
        if rng.random() < 0.5 and not (folder / name).exists():
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(code)
            (folder / name / f"{name}.py").write_text(code)
        else:
            (folder / f"{name}.py").write_text(code)


def attribute_names() -> tuple[str, ...]:
    """Gives names of attributes that modules have."""
    return NAMES
