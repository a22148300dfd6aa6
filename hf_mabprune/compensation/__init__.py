"""Compensation, one file each: what stays is refitted to give what the unpruned model gave. No training."""

from hf_mabprune.compensation.base import COMPENSATIONS, Compensation, make_compensation
from hf_mabprune.compensation.refit import CompensationFigures, SiteFigures, Teacher, compensate

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "CompensationFigures",
    "SiteFigures",
    "Teacher",
    "compensate",
    "make_compensation",
]
