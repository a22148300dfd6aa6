"""Criteria, one file each: what an arm is worth without pulling it, as baselines and priors."""

from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics

__all__ = ["CRITERIA", "CalibrationStatistics", "Criterion"]
