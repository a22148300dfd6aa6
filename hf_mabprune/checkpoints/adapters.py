"""What peft must know of per-layer checkpoints."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hf_mabprune.checkpoints.modeling_pruned import TYPE_PREFIX

CONSTANTS = "peft.utils.constants"
TARGETS = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"


def register_lora_targets(imported: bool = False) -> dict[str, Any]:
    """Tells peft that a LoRA of a pruned model goes to the modules that one of the dense model goes to.

    Args:
        imported: Whether to leave peft alone where nobody has imported it, which takes seconds.

    Returns:
        Model type -> target modules, as peft has them; nothing where it is not there.
    """
    if (CONSTANTS not in sys.modules) if imported else find_spec("peft") is None:
        return {}
    targets: dict[str, Any] = getattr(import_module(CONSTANTS), TARGETS)
    known = {name: modules for name, modules in targets.items() if not name.startswith(TYPE_PREFIX)}
    for name, modules in known.items():
        targets.setdefault(f"{TYPE_PREFIX}{name}", modules)
    return targets
