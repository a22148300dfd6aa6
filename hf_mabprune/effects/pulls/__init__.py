"""Pulls: what it costs to remove an arm, measured by masking it on a mini-batch."""

from hf_mabprune.effects.pulls.base import Pulls

__all__ = ["Pulls"]
