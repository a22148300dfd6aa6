"""Criteria, one file each: what an arm is worth without pulling it, as baselines and priors."""

from hf_mabprune.criteria.base import CRITERIA, CalibrationStatistics, Criterion

__all__ = ["CRITERIA", "CalibrationStatistics", "Criterion"]
