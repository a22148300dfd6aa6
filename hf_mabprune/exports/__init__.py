"""Exports, one file each: what other programs run a checkpoint from."""

from hf_mabprune.exports.base import EXPORTS, Export

__all__ = ["EXPORTS", "Export"]
