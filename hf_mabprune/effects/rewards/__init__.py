"""Rewards, one file each: how safe the removal of an arm looks on each example of a pull."""

from hf_mabprune.effects.rewards.base import QUANTITIES, REWARDS, Observation, Reward, check_reward

__all__ = ["QUANTITIES", "REWARDS", "Observation", "Reward", "check_reward"]
