"""Places that a checkpoint is put to use in, one file each: how it is loaded there, and whether it says the same."""

from hf_mabprune.places.base import PLACES, Found, Place, Untried, tried, tried_at_end
from hf_mabprune.places.subject import Subject, subject_of

__all__ = ["PLACES", "Found", "Place", "Subject", "Untried", "subject_of", "tried", "tried_at_end"]
