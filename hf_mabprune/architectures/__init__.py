"""Model families: where the sites of a model are, how their weights are read and cut, and what they cost."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture, Layer, architecture_of, family_of
from hf_mabprune.architectures.projections import Projection, projection_of
from hf_mabprune.architectures.sites import Site

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Layer",
    "Projection",
    "Site",
    "architecture_of",
    "family_of",
    "projection_of",
]
