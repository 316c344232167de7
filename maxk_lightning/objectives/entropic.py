"""The entropic objective with a temperature of each group's own. Shapes: P prompts, N completions per prompt."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxk_lightning.objectives.group import (
    EQUAL_REWARDS_TOLERANCE,
    bisected,
    largest,
    per_sample,
    present_rewards,
    require_group_size,
)
from maxk_lightning.objectives.objective import Objective

LARGEST_BETA = 1e6
"In units of one over the range of the rewards; rewards nearer to each other than the 1e-6th part of it count as tied."
NUM_HALVINGS = 64
"beta is found to 1e6 / 2^64 = 5e-14 of these units."


@dataclass(frozen=True)
class Entropic(Objective):
    """TTT-Discover's advantage (arXiv:2601.16175): e^{beta r_i} / (mean of e^{beta r_j} over the others) - 1, over n.

    Ascends log E[e^{beta r}], which is the mean of the rewards for a small beta and their maximum for a large one. beta
    is solved in every group so that q, proportional to e^{beta r} over its samples, is `kl` away from uniform. So
    credits do not depend on the level or the scale of the rewards: a prompt's hardness decides how far into the tail of
    its rewards the objective looks, not a k. Biased: beta depends on the samples that it weights.

    If the best m of n samples are tied, q cannot be farther from uniform than log(n / m). Where that is below `kl`,
    beta is at its bound, `LARGEST_BETA`: advantages are (n - m) / (m - 1) for the best, -1 for the others. (The
    authors' bound, 1e6, is on beta itself; and they penalise the KL to the base policy inside the advantage, for which
    there is `kl_coef` here.) Equal rewards give 0. So do groups that lost samples until e^kl or fewer are left, where
    the advantage of a single best sample would have no bound.
    """

    includes_ratio: ClassVar[bool] = False
    kl: float = math.log(2.0)
    "KL(q || uniform) in nats, positive; ln 2, the authors' choice, is that of q uniform over one half of the samples."

    def __post_init__(self) -> None:
        if not 0.0 < self.kl < math.inf:
            raise ValueError(f"`kl` is {self.kl}, must be positive and finite")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. Raises ValueError unless log N is above `kl`."""
        require_group_size(
            rewards_PN.shape[1],
            self.smallest_group,
            f"Entropic with `objective.kl` {self.kl:g}",
            "the KL to the uniform distribution over n samples is at most log n",
        )
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        heights_PN, has_spread_P1 = heights(rewards_PN, is_present_PN)
        num_samples_P1 = is_present_PN.sum(-1, keepdim=True)
        weights_PN = (solved_beta(heights_PN, is_present_PN, self.kl) * heights_PN).exp() * is_present_PN
        others_PN = (weights_PN.sum(-1, keepdim=True) - weights_PN) / (num_samples_P1 - 1).clamp(min=1)
        is_used_PN = has_spread_P1 & (num_samples_P1 >= self.smallest_group) & is_present_PN
        advantages_PN = torch.where(is_used_PN, weights_PN / torch.where(is_used_PN, others_PN, 1.0) - 1.0, 0.0)
        return per_sample(advantages_PN, is_present_PN)

    @property
    def smallest_group(self) -> int:
        """The smallest n with log n above `kl`."""
        return math.floor(math.exp(self.kl) + 1e-9) + 1  # e^(ln 2) may round below 2


def heights(rewards_PN: Tensor, is_present_PN: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards from -1 (the smallest of the group) to 0 (the largest, and missing ones); [P, 1], whether they differ."""
    below_best_PN = torch.where(is_present_PN, rewards_PN - largest(rewards_PN, is_present_PN), 0.0)
    range_P1 = -below_best_PN.amin(-1, keepdim=True)
    has_spread_P1 = range_P1 > EQUAL_REWARDS_TOLERANCE * rewards_PN.abs().amax(-1, keepdim=True)
    return below_best_PN / torch.where(has_spread_P1, range_P1, 1.0), has_spread_P1


def solved_beta(heights_PN: Tensor, is_present_PN: Tensor, kl: float) -> Tensor:
    """beta in [0, LARGEST_BETA] at which q, proportional to e^{beta height}, is `kl` from uniform: [P, 1].

    The bound where it stays nearer. KL rises with beta: its derivative is beta times the variance of the heights.
    """
    low_P1 = torch.zeros_like(heights_PN[:, :1])
    return bisected(
        lambda beta_P1: divergence(beta_P1 * heights_PN, is_present_PN) <= kl,
        low_P1,
        low_P1 + LARGEST_BETA,
        NUM_HALVINGS,
    )


def divergence(logits_PN: Tensor, is_present_PN: Tensor) -> Tensor:
    """KL between the softmax of the logits and the uniform distribution over the samples of each group: [P, 1].

    >>> divergence(torch.tensor([[0.0, 0.0, -1e9, -1e9]]), torch.ones(1, 4).bool()).exp()
    tensor([[2.]])
    """
    logits_PN = logits_PN.masked_fill(is_present_PN.logical_not(), -torch.inf)
    log_q_PN = torch.where(is_present_PN, logits_PN - logits_PN.logsumexp(-1, keepdim=True), 0.0)
    q_PN = log_q_PN.exp() * is_present_PN
    return (q_PN * log_q_PN).sum(-1, keepdim=True) + is_present_PN.sum(-1, keepdim=True, dtype=q_PN.dtype).log()
