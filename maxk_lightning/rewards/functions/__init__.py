"""Plain functions as rewards."""

from maxk_lightning.rewards.functions.function_reward import FunctionReward

__all__ = ["FunctionReward"]
