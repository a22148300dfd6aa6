"""Every setting of a run, checked before any compute; the YAML file is this tree written down."""

from hf_mabprune.config.base import Strict, check_as
from hf_mabprune.config.data import REFIT_SHARE, SAMPLE_TEXT, DatasetConfig, SplitsConfig, TaskConfig
from hf_mabprune.config.errors import known_types
from hf_mabprune.config.reader import parse_yaml, read_yaml
from hf_mabprune.config.recovery import RecoveryConfig
from hf_mabprune.config.run import EvaluateConfig, ModelConfig, OutputConfig, PruneConfig, check
from hf_mabprune.config.search import SearchConfig
from hf_mabprune.config.target import PruningConfig, TargetConfig, VocabularyConfig

__all__ = [
    "REFIT_SHARE",
    "SAMPLE_TEXT",
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
    "VocabularyConfig",
    "check",
    "check_as",
    "known_types",
    "parse_yaml",
    "read_yaml",
]
