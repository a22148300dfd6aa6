"""Bandit policies, one file each: numbers in, numbers out, no model."""

from hf_mabprune.policies.base import POLICIES, Policy

__all__ = ["POLICIES", "Policy"]
