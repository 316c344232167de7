"""Learning from failures: one weight for correct samples and one for wrong ones, whatever the rest of the group is.

Shapes: P prompts, N completions per prompt.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxk_lightning.objectives.group import per_sample, present_rewards
from maxk_lightning.objectives.objective import Objective


@dataclass(frozen=True)
class NSR(Objective):
    """Negative sample reinforcement (arXiv:2506.01347): -1 for wrong samples and nothing for correct ones, over n.

    This is `WReinforce` with a `positive_weight` of 0; see there.
    """

    includes_ratio: ClassVar[bool] = False
    threshold: float = 1.0
    "A sample is correct if its reward is at least this; 1 is the full reward."

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`."""
        return weighted_signs(rewards_PN, self.threshold, positive_weight=0.0)


@dataclass(frozen=True)
class WReinforce(Objective):
    """W-REINFORCE (arXiv:2506.01347): `positive_weight` for correct samples, -1 for wrong ones, over n.

    The authors' rewards are binary. `threshold` makes others binary: a sample that passes some tests is as wrong as one
    that passes none. There is no baseline from the group: a group of equal rewards has credits too, and a single sample
    is enough.

    The advantage is (1 + positive_weight) (1[correct] - 1 / (1 + positive_weight)). So on-policy it is unbiased for
    1 + positive_weight times the gradient of pass@1, for any weight: it acts as a constant baseline. It differs from
    REINFORCE in its noise, and in what later PPO iterations make of its signs.
    """

    includes_ratio: ClassVar[bool] = False
    positive_weight: float = 0.1
    "Weight of correct samples, not negative; 0.1 is the authors' choice, 0 is `NSR`, 1 their REINFORCE."
    threshold: float = 1.0
    "A sample is correct if its reward is at least this; 1 is the full reward."

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if not 0.0 <= self.positive_weight < math.inf:
            raise ValueError(f"`positive_weight` is {self.positive_weight}, must be finite and not negative")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`."""
        return weighted_signs(rewards_PN, self.threshold, self.positive_weight)


def weighted_signs(rewards_PN: Tensor, threshold: float, positive_weight: float) -> Tensor:
    """`positive_weight` where the reward reaches the threshold, else -1; over n, 0 where missing.

    >>> weighted_signs(torch.tensor([[1.0, 0.9, 0.0, torch.nan, 0.0]]), threshold=1.0, positive_weight=0.1)
    tensor([[ 0.0250, -0.2500, -0.2500,  0.0000, -0.2500]], dtype=torch.float64)
    """
    rewards_PN, is_present_PN = present_rewards(rewards_PN)
    advantages_PN = torch.full_like(rewards_PN, -1.0).masked_fill(rewards_PN >= threshold, positive_weight)
    return per_sample(advantages_PN, is_present_PN)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is not finite with ValueError."""
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` is {threshold}, must be finite")
