"""Engines that sample completions."""

from maxk_lightning.rollouts.allocation import Allocation
from maxk_lightning.rollouts.engine import (
    EngineError,
    EngineLoad,
    ManagedEngine,
    MeasuredEngine,
    RolloutEngine,
    StreamingEngine,
)
from maxk_lightning.rollouts.engines.transformers.engine import TransformersEngine
from maxk_lightning.rollouts.engines.vllm.engine import VLLMEngine
from maxk_lightning.rollouts.engines.vllm.server import VLLMServerEngine
from maxk_lightning.rollouts.replay import Replay

__all__ = [
    "Allocation",
    "EngineError",
    "EngineLoad",
    "ManagedEngine",
    "MeasuredEngine",
    "Replay",
    "RolloutEngine",
    "StreamingEngine",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServerEngine",
]
