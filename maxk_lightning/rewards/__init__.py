"""Rewards: the seam, and the unit-test reward with its sandbox. Standard library only."""

from maxk_lightning.rewards.comparison import same_output
from maxk_lightning.rewards.extraction import extract_code
from maxk_lightning.rewards.reward import CheckableReward, Reward, StreamingReward
from maxk_lightning.rewards.sandbox.selftest import SandboxUnavailableError
from maxk_lightning.rewards.unit_tests import UnitTestReward

__all__ = [
    "CheckableReward",
    "Reward",
    "SandboxUnavailableError",
    "StreamingReward",
    "UnitTestReward",
    "extract_code",
    "same_output",
]
