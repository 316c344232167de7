"""Engines that sample completions."""

from maxk_lightning.rollouts.engine import EngineError, ManagedEngine, RolloutEngine, StreamingEngine
from maxk_lightning.rollouts.transformers_engine import TransformersEngine
from maxk_lightning.rollouts.vllm_engine import VLLMEngine
from maxk_lightning.rollouts.vllm_server import VLLMServerEngine

__all__ = [
    "EngineError",
    "ManagedEngine",
    "RolloutEngine",
    "StreamingEngine",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
]
