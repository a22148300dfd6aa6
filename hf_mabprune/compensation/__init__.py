"""Compensation, one file each: what stays is refitted to give what the dense model gave. No training."""

from hf_mabprune.compensation.base import COMPENSATIONS, Compensation, make_compensation
from hf_mabprune.compensation.dense_reference import DenseReference
from hf_mabprune.compensation.refit import CompensationFigures, compensate, refit_all
from hf_mabprune.compensation.refit_cache import RefitCache
from hf_mabprune.compensation.site_refit import SiteFigures

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "CompensationFigures",
    "DenseReference",
    "RefitCache",
    "SiteFigures",
    "compensate",
    "make_compensation",
    "refit_all",
]
