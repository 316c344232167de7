"""Engines that sample completions."""

from maxk_lightning.rollouts.engine import RolloutEngine
from maxk_lightning.rollouts.transformers_engine import TransformersEngine

__all__ = ["RolloutEngine", "TransformersEngine"]
