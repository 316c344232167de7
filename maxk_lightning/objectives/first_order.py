"""The paper's first-order off-policy credits (arXiv:2510.23393, section 3.3 and Appendix E).

Shapes: P prompts, N completions per prompt. Notation as in `on_policy`; delta = rho - 1.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from maxk_lightning.estimators import top_rank_weights
from maxk_lightning.objectives.group import (
    SortedGroups,
    clamped_log_ratios,
    deviations,
    per_sample,
    sort_groups,
    z_scores,
)
from maxk_lightning.objectives.objective import Objective
from maxk_lightning.objectives.on_policy import (
    check_k,
    check_k_below_n,
    check_k_of_n,
    check_loo1,
    sum_above,
    sum_below,
)


@dataclass(frozen=True)
class OffPolicyMaxAtK(Objective):
    """max@k credits with prod rho_l over a subset replaced by 1 + sum delta_l: biased at second order in the drift.

    Differs from the paper's listings: sorts first, and puts the diagonal term on the diagonal, as in Appendix E. The
    credits contain the ratio; the paper does not say whether theirs were multiplied by the PPO ratio again, ours must
    not be. `ExactMaxAtK` costs the same order of work and has no bias.

    Baselines:
        none: the estimate itself.
        loo1: for every subset, the maximum without the sample itself; needs k >= 2. Contains the ratio, as it should.
        mean: minus the group mean, needs k < n. For a constant reward c its expectation is c k (1 - k/n) times
            grad KL(pi_old || pi), a force away from the behaviour policy where there should be none.
        zscore: the same over the standard deviation and n (our reading of the paper's tables); needs k < n.
    Groups that lost samples until fewer than k are left (k + 1 with `mean` and `zscore`) get credits of 0. With a
    `clamp` no credit exceeds (1 + k clamp) k/n times the largest |reward| (`loo1`: times the range; `mean`: twice it).
    """

    includes_ratio: ClassVar[bool] = True
    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    baseline: Literal["none", "loo1", "mean", "zscore"] = "none"
    "Baseline that is subtracted."
    clamp: float | None = 0.2
    "Bound on |delta|, as in the paper's code, which does not publish its value; None: no bound (but e^20)."

    def __post_init__(self) -> None:
        check_k(self.k)
        check_loo1(self.k, self.baseline)
        if self.clamp is not None and not self.clamp > 0.0:
            raise ValueError(f"`clamp` is {self.clamp}, must be positive, or null for no bound")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. ValueError for k > N, and for k = N with a baseline that is zero there."""
        check_k_of_n(self.k, rewards_PN, "max@k")
        if self.baseline in ("mean", "zscore"):
            check_k_below_n(self.k, rewards_PN, f"baseline `{self.baseline}`")
        groups = sort_groups(rewards_PN)
        deltas_PN = groups.sort_like(clamped_log_ratios(rewards_PN, log_ratios_PN)).expm1()
        if self.clamp is not None:
            deltas_PN = deltas_PN.clamp(-self.clamp, self.clamp)
        return groups.unsort(BASELINES[self.baseline](groups, deltas_PN, self.k))


def plain_credits(groups: SortedGroups, deltas_PN: Tensor, k: int) -> Tensor:
    """c_i = sum_{j>=i} w'_ij r_j / C(n, k) in rank order (Appendix E).

    With a_j = C(j-1,k-1)/C(n,k), b_j = C(j-2,k-2)/C(n,k), h_j = C(j-3,k-3)/C(n,k) and D_j = sum_{l<j} delta_l:
    w'_ii = a_i (1 + delta_i) + b_i D_i and w'_ij = b_j (1 + delta_j) + h_j D_j + (b_j - h_j) delta_i.
    """
    ranks_PN = groups.ranks_PN
    a_PN = top_rank_weights(groups.num_samples_P, groups.rewards_PN.shape[1], k)
    b_PN = a_PN * (k - 1) / (ranks_PN - 1).clamp(min=1)
    h_PN = b_PN * (k - 2) / (ranks_PN - 2).clamp(min=1)
    below_PN = sum_below(deltas_PN)
    diagonal_PN = (a_PN * (1 + deltas_PN) + b_PN * below_PN) * groups.rewards_PN
    above_PN = sum_above((b_PN * (1 + deltas_PN) + h_PN * below_PN) * groups.rewards_PN)
    return diagonal_PN + above_PN + deltas_PN * sum_above((b_PN - h_PN) * groups.rewards_PN)


def loo1_credits(groups: SortedGroups, deltas_PN: Tensor, k: int) -> Tensor:
    """sum_{t<i} gap_t [C(t,k-1) (1 + delta_i) + C(t-1,k-2) sum_{l<=t} delta_l] / C(n, k)."""
    next_weights_PN = top_rank_weights(groups.num_samples_P, groups.rewards_PN.shape[1], k).roll(-1, dims=-1)
    ratio_of_others_PN = (k - 1) / groups.ranks_PN * deltas_PN.cumsum(-1)
    weighted_gaps_PN = groups.gaps_PN * next_weights_PN
    return (1 + deltas_PN) * sum_below(weighted_gaps_PN) + sum_below(weighted_gaps_PN * ratio_of_others_PN)


def mean_centred_credits(groups: SortedGroups, deltas_PN: Tensor, k: int) -> Tensor:
    """Plain credits minus their group mean; 0 in groups of n <= k."""
    has_others_P1 = groups.num_samples_P.unsqueeze(-1) > k
    return torch.where(has_others_P1, deviations(plain_credits(groups, deltas_PN, k), groups.is_present_PN), 0.0)


def z_scored_credits(groups: SortedGroups, deltas_PN: Tensor, k: int) -> Tensor:
    """Z-scores of the plain credits, over n; 0 in groups of n <= k."""
    has_others_P1 = groups.num_samples_P.unsqueeze(-1) > k
    scores_PN = z_scores(plain_credits(groups, deltas_PN, k), groups.is_present_PN)
    return torch.where(has_others_P1, per_sample(scores_PN, groups.is_present_PN), 0.0)


BASELINES = {
    "none": plain_credits,
    "loo1": loo1_credits,
    "mean": mean_centred_credits,
    "zscore": z_scored_credits,
}
