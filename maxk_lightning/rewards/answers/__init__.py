"""Rewards that compare answers."""

from maxk_lightning.rewards.answers.math_reward import MathReward

__all__ = ["MathReward"]
