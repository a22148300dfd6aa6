"""Compensation, one file each: what stays is refitted to give what the unpruned model gave. No training."""

from hf_mabprune.compensation.base import COMPENSATIONS, Compensation, make_compensation
from hf_mabprune.compensation.refit import CompensationFigures, Known, SiteFigures, compensate, refit_all
from hf_mabprune.compensation.teacher import Teacher

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "CompensationFigures",
    "Known",
    "SiteFigures",
    "Teacher",
    "compensate",
    "make_compensation",
    "refit_all",
]
