"""Callbacks: what happens around the training steps."""

from maxk_lightning.callbacks.checkpoint import AtomicCheckpointIO, RolloutCheckpoint
from maxk_lightning.callbacks.curves import CurveWriter
from maxk_lightning.callbacks.glossary import GlossaryWriter
from maxk_lightning.callbacks.hyperparameters import HyperparameterWriter
from maxk_lightning.callbacks.progress import RolloutProgressBar
from maxk_lightning.callbacks.rollouts import RolloutCallback
from maxk_lightning.callbacks.samples import PredictionWriter, SampleWriter

__all__ = [
    "AtomicCheckpointIO",
    "CurveWriter",
    "GlossaryWriter",
    "HyperparameterWriter",
    "PredictionWriter",
    "RolloutCallback",
    "RolloutCheckpoint",
    "RolloutProgressBar",
    "SampleWriter",
]
