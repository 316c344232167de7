"""Rewards: the seam, unit tests in a sandbox, answers, plain functions. Standard library only, but for math-verify."""

from maxk_lightning.rewards.answers import MathReward
from maxk_lightning.rewards.comparison import same_output
from maxk_lightning.rewards.extraction import extract_code
from maxk_lightning.rewards.functions import FunctionReward
from maxk_lightning.rewards.reward import (
    CheckableReward,
    CompletionReward,
    ProblemChecker,
    Reward,
    RewardError,
    StreamingReward,
    check_problems,
    gives_behaviours,
)
from maxk_lightning.rewards.sandbox.selftest import SandboxUnavailableError
from maxk_lightning.rewards.unit_tests import UnitTestReward
from maxk_lightning.rewards.weighted import WeightedReward, WeightedRewards

__all__ = [
    "CheckableReward",
    "CompletionReward",
    "FunctionReward",
    "MathReward",
    "ProblemChecker",
    "Reward",
    "RewardError",
    "SandboxUnavailableError",
    "StreamingReward",
    "UnitTestReward",
    "WeightedReward",
    "WeightedRewards",
    "check_problems",
    "extract_code",
    "gives_behaviours",
    "same_output",
]
