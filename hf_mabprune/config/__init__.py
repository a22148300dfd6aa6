"""Every setting of a run, checked before any compute; the YAML file is this tree written down."""

from hf_mabprune.config.run import (
    DatasetConfig,
    EvaluateConfig,
    ModelConfig,
    OutputConfig,
    PruneConfig,
    PruningConfig,
    RecoveryConfig,
    SearchConfig,
    SplitsConfig,
    Strict,
    TargetConfig,
    TaskConfig,
    check,
    check_as,
    known_keys,
    known_types,
)

__all__ = [
    "DatasetConfig",
    "EvaluateConfig",
    "ModelConfig",
    "OutputConfig",
    "PruneConfig",
    "PruningConfig",
    "RecoveryConfig",
    "SearchConfig",
    "SplitsConfig",
    "Strict",
    "TargetConfig",
    "TaskConfig",
    "check",
    "check_as",
    "known_keys",
    "known_types",
]
