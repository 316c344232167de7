"""Engines that sample completions."""

from maxk_lightning.rollouts.engine import RolloutEngine, StreamingEngine
from maxk_lightning.rollouts.transformers_engine import TransformersEngine

__all__ = ["RolloutEngine", "StreamingEngine", "TransformersEngine"]
