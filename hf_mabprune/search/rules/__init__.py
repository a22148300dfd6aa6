"""Removal rules, one file each: what goes after a round, given what was measured of the arms one by one."""

from hf_mabprune.search.rules.base import RULES, EstimatingRule, Extent, Removal, Rule, RuleMemory

__all__ = ["RULES", "EstimatingRule", "Extent", "Removal", "Rule", "RuleMemory"]
