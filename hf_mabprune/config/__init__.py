"""Every setting of a run, checked before any compute; the YAML file is this tree written down."""

from hf_mabprune.config.amounts import Amount, in_units, in_words
from hf_mabprune.config.base import Strict, check_as
from hf_mabprune.config.data import REFIT_SHARE, SAMPLE_TEXT, DatasetConfig, SplitsConfig, TaskConfig
from hf_mabprune.config.errors import known_types
from hf_mabprune.config.promise import PromiseConfig
from hf_mabprune.config.reader import parse_yaml, read_yaml
from hf_mabprune.config.recovery import RecoveryConfig
from hf_mabprune.config.run import EvaluateConfig, ModelConfig, OutputConfig, PruneConfig, SparsifyConfig, check
from hf_mabprune.config.search import SearchConfig
from hf_mabprune.config.target import (
    LatencyTarget,
    MemoryTarget,
    PruningConfig,
    TargetConfig,
    VocabularyConfig,
    name_of,
)

__all__ = [
    "REFIT_SHARE",
    "SAMPLE_TEXT",
    "Amount",
    "DatasetConfig",
    "EvaluateConfig",
    "LatencyTarget",
    "MemoryTarget",
    "ModelConfig",
    "OutputConfig",
    "PromiseConfig",
    "PruneConfig",
    "PruningConfig",
    "RecoveryConfig",
    "SearchConfig",
    "SparsifyConfig",
    "SplitsConfig",
    "Strict",
    "TargetConfig",
    "TaskConfig",
    "VocabularyConfig",
    "check",
    "check_as",
    "in_units",
    "in_words",
    "known_types",
    "name_of",
    "parse_yaml",
    "read_yaml",
]
