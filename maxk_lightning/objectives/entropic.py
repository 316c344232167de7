"""The entropic objective with one temperature per group. Shapes: P prompts, N completions per prompt."""

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
"In units of one over the range of the rewards; rewards that differ by less than 1e-6 of the range count as tied."
SMALLEST_BETA = 1e-6
"Where the search for beta begins; the KL there is at most 1e-12 / 8."
NUM_HALVINGS = 18
"They find beta to a relative error of 1e-4, which each step of Newton's method squares."
NUM_NEWTON_STEPS = 3
"After three only rounding is left."
NEAR = 1.001
"Newton's method stays within this factor of what the search found."
MISSING = -1e30
"Height of a missing sample: its weight is 0 at any beta, and so is its weight times its height."


@dataclass(frozen=True)
class Entropic(Objective):
    """TTT-Discover's advantage (arXiv:2601.16175): e^{beta r_i} / (mean of e^{beta r_j} over the others) - 1, over n.

    Ascends log E[e^{beta r}], which is the mean of the rewards for a small beta and their maximum for a large one. beta
    is solved in every group so that q, proportional to e^{beta r} over its samples, is `kl` away from uniform. So
    credits do not depend on the level or the scale of the rewards: the difficulty of a prompt, not a k, decides how far
    into the tail of its rewards the objective looks. Biased: beta depends on the samples that it weights.

    If the best m of n samples are tied, q cannot be farther from uniform than log(n / m). Where that is below `kl`,
    beta is large, near `LARGEST_BETA`, and advantages are (n - m) / (m - 1) for the best, -1 for the others. (The
    authors' bound, 1e6, is on beta itself; and they penalise the KL to the base policy inside the advantage, where this
    package has `kl_coef`.) Equal rewards give 0. So do groups that lost samples until e^kl or fewer are left, where the
    advantage of a single best sample would have no bound.
    """

    includes_ratio: ClassVar[bool] = False
    kl: float = math.log(2.0)
    "KL(q || uniform) in nats, positive; ln 2, the authors' choice, is the KL of a q uniform over half of the samples."

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
        num_samples_P1 = is_present_PN.sum(-1, keepdim=True, dtype=rewards_PN.dtype)
        heights_PN, has_spread_P1 = heights(rewards_PN, is_present_PN)
        weights_PN = (solved_beta(heights_PN, num_samples_P1, self.kl) * heights_PN).exp()
        others_PN = (weights_PN.sum(-1, keepdim=True) - weights_PN) / (num_samples_P1 - 1).clamp(min=1)
        is_used_PN = has_spread_P1 & (num_samples_P1 >= self.smallest_group) & is_present_PN
        advantages_PN = torch.where(is_used_PN, weights_PN / torch.where(is_used_PN, others_PN, 1.0) - 1.0, 0.0)
        return per_sample(advantages_PN, is_present_PN)

    @property
    def smallest_group(self) -> int:
        """The smallest n with log n above `kl`."""
        return math.floor(math.exp(self.kl) + 1e-9) + 1  # e^(ln 2) may round below 2


def heights(rewards_PN: Tensor, is_present_PN: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards from -1 (the smallest of the group) to 0 (the largest), `MISSING`; and whether they differ, [P, 1]."""
    below_best_PN = torch.where(is_present_PN, rewards_PN - largest(rewards_PN, is_present_PN), 0.0)
    range_P1 = -below_best_PN.amin(-1, keepdim=True)
    has_spread_P1 = range_P1 > EQUAL_REWARDS_TOLERANCE * rewards_PN.abs().amax(-1, keepdim=True)
    return torch.where(is_present_PN, below_best_PN / torch.where(has_spread_P1, range_P1, 1.0), MISSING), has_spread_P1


def solved_beta(heights_PN: Tensor, num_samples_P1: Tensor, kl: float) -> Tensor:
    """Find the beta at which q, proportional to e^{beta height}, is `kl` from uniform: [P, 1].

    LARGEST_BETA where q stays nearer. KL rises with beta: its derivative is beta times the variance of the heights.
    """
    start_P1 = torch.zeros_like(heights_PN[:, :1])
    found_P1 = bisected(
        lambda log_beta_P1: tilted(log_beta_P1.exp() * heights_PN, num_samples_P1)[1] <= kl,
        start_P1 + math.log(SMALLEST_BETA),
        start_P1 + math.log(LARGEST_BETA),
        NUM_HALVINGS,
    ).exp()
    beta_P1 = found_P1
    for _ in range(NUM_NEWTON_STEPS):
        q_PN, divergence_P1 = tilted(beta_P1 * heights_PN, num_samples_P1)
        mean_P1 = (q_PN * heights_PN).sum(-1, keepdim=True)
        slope_P1 = beta_P1 * (q_PN * (heights_PN - mean_P1).square()).sum(-1, keepdim=True)
        # without a slope all of q is on tied samples; where log(n / m) is `kl`, what is left of both is rounding
        steps_P1 = torch.where(slope_P1 > 0, (kl - divergence_P1) / torch.where(slope_P1 > 0, slope_P1, 1.0), 0.0)
        beta_P1 = torch.minimum(torch.maximum(beta_P1 + steps_P1, found_P1 / NEAR), found_P1 * NEAR)
    return beta_P1


def tilted(logits_PN: Tensor, num_samples_P1: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the logits, and its KL to the uniform distribution over the samples of each group, [P, 1].

    >>> tilted(torch.tensor([[0.0, 0.0, -1e9, -1e9]]), torch.tensor([[4.0]]))[1].exp()
    tensor([[2.]])
    """
    log_q_PN = logits_PN.log_softmax(-1)
    q_PN = log_q_PN.exp()
    return q_PN, (q_PN * log_q_PN).sum(-1, keepdim=True) + num_samples_P1.log()
