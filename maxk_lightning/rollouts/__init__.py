"""Engines that sample completions."""

from maxk_lightning.rollouts.engine import EngineError, ManagedEngine, RolloutEngine, StreamingEngine
from maxk_lightning.rollouts.engines.transformers.engine import TransformersEngine
from maxk_lightning.rollouts.engines.vllm.engine import VLLMEngine
from maxk_lightning.rollouts.engines.vllm.server import VLLMServerEngine

__all__ = [
    "EngineError",
    "ManagedEngine",
    "RolloutEngine",
    "StreamingEngine",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
]
