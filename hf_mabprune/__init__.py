"""hf_mabprune: structured pruning of Hugging Face Transformers with multi-armed bandits.

Importing this package lets AutoModel*.from_pretrained load per-layer checkpoints without trust_remote_code. That is
all it does at once; what is needed to prune is imported on first use, so that a server does not pay for it.
"""

import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

_command = sys.argv[0].rpartition("/")[2] == "mabprune" if sys.argv else False
if (_command or sys.orig_argv[1:3] == ["-m", "hf_mabprune"]) and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the command is imported ends it, without a traceback

from hf_mabprune.architectures import ARCHITECTURES  # noqa: E402
from hf_mabprune.checkpoints.load import load_pruned, register_auto_classes  # noqa: E402

if TYPE_CHECKING:
    from hf_mabprune.artifacts.publish import push_checkpoint
    from hf_mabprune.artifacts.stored import evaluate_checkpoint
    from hf_mabprune.checkpoints.table_processor import TableProcessor
    from hf_mabprune.config import PruneConfig
    from hf_mabprune.effects.masking import masked
    from hf_mabprune.pipeline import prune, prune_from_config
    from hf_mabprune.preview import plan_run
    from hf_mabprune.recut import cut_run
    from hf_mabprune.result import PruneResult
    from hf_mabprune.sparse_checkpoint import sparsify_checkpoint
    from hf_mabprune.sparsity import sparsify
    from hf_mabprune.training import PruneCallback

_HOMES = {
    "PruneCallback": "training",
    "PruneConfig": "config",
    "PruneResult": "result",
    "TableProcessor": "checkpoints.table_processor",
    "cut_run": "recut",
    "evaluate_checkpoint": "artifacts.stored",
    "masked": "effects.masking",
    "plan_run": "preview",
    "prune": "pipeline",
    "prune_from_config": "pipeline",
    "push_checkpoint": "artifacts.publish",
    "sparsify": "sparsity",
    "sparsify_checkpoint": "sparse_checkpoint",
}

__all__ = [
    "PruneCallback",
    "PruneConfig",
    "PruneResult",
    "TableProcessor",
    "cut_run",
    "evaluate_checkpoint",
    "load_pruned",
    "masked",
    "plan_run",
    "prune",
    "prune_from_config",
    "push_checkpoint",
    "sparsify",
    "sparsify_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"hf_mabprune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hf_mabprune' has no attribute '{name}'")


register_auto_classes()  # last, for it loads installed plugins, which import from here
ARCHITECTURES.follow(register_auto_classes)
