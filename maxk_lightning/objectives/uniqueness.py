"""Advantages that are smaller the more samples of the group behave alike. P prompts, N completions per prompt."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxk_lightning.objectives.group import per_sample, present_rewards, require_group_size, z_scores
from maxk_lightning.objectives.objective import Objective, given_behaviours, is_alike
from maxk_lightning.objectives.relative import ALONE


@dataclass(frozen=True)
class UniquenessWeighted(Objective):
    """Uniqueness-aware RL (arXiv:2601.08763): GRPO's advantage over f_i^alpha, f_i samples being like sample i.

    Every advantage is weighted, those below zero too: a rare mistake is pushed down harder than a common one. Credits
    no longer sum to 0, and what they ascend has no name: biased. With alpha = 1 each kind of sample counts as one
    sample, however many there are of it; with alpha = 0 this is `GRPO`.

    The authors have an LLM judge cluster samples by their strategy, whatever the answer. Here samples are alike when
    they behave alike (`Score.behaviour`): two ways to the same outputs count as one. Where a test has one right output
    all fully correct programs are alike: the weight separates wrong programs, and right ones only from wrong ones. A
    sample whose behaviour is unknown is like no other; a missing one is not counted. The paper was not at hand: this
    follows what others write of its equations, and none of them gives the authors' alpha.
    """

    includes_ratio: ClassVar[bool] = False
    needs_behaviours: ClassVar[bool] = True
    alpha: float = 1.0
    "Exponent in [0, 1]; 1: inversely with the number of samples alike, as the paper's abstract says."

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"`alpha` is {self.alpha}, must be in [0, 1]; at 0 this is `GRPO`")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor, behaviours_PN: Tensor | None = None) -> Tensor:
        """Compute credits; see `Objective`."""
        require_group_size(rewards_PN.shape[1], 2, "UniquenessWeighted", ALONE)
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        behaviours_PN = given_behaviours(self, rewards_PN, behaviours_PN)
        num_alike_PN = is_alike(is_present_PN, behaviours_PN).sum(-1, dtype=torch.float64).clamp(min=1)
        return per_sample(z_scores(rewards_PN, is_present_PN) / num_alike_PN**self.alpha, is_present_PN)
