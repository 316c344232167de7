"""On-policy max@k credits: advantages for the usual surrogate. Shapes: P prompts, N completions per prompt.

With rewards sorted ascending in a group of n, a_j = C(j-1, k-1) / C(n, k) is the probability that rank j is the best of
a uniform k-subset (`estimators.top_rank_weights`). Baselines are written with the gaps r_(t+1) - r_(t) between
neighbours, so that they are sums of terms of one sign: shifting the rewards changes nothing, not even the rounding of
equal groups.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from maxk_lightning.estimators import top_rank_weights
from maxk_lightning.objectives.group import SortedGroups, per_sample, sort_groups, z_scores
from maxk_lightning.objectives.objective import Objective


@dataclass(frozen=True)
class MaxAtK(Objective):
    """The gradient of max@k from on-policy samples (arXiv:2505.15201; arXiv:2510.23393, section 3).

    Baselines (all but `zscore` keep the estimate unbiased):
        centred: (k/n) (E[max over I | i in I] - E[max over I | i not in I]), needs k < n; sums to 0 over the group.
        loo1: for every subset, the maximum without the sample itself; needs k >= 2; never negative.
        zscore: the plain credit, z-scored in the group, over n (the paper's "BoN mean"); direction only; needs k < n.
        none: the average of max over all subsets, counted as 0 for those without the sample.
    A group that lost samples until fewer than k are left (k + 1 with `centred` and `zscore`) gets credits of 0.
    """

    includes_ratio: ClassVar[bool] = False
    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    baseline: Literal["centred", "loo1", "zscore", "none"] = "centred"
    "Baseline that is subtracted."

    def __post_init__(self) -> None:
        check_k(self.k)
        check_loo1(self.k, self.baseline)

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. ValueError for k > N, and for k = N with a baseline that is zero there."""
        check_k_of_n(self.k, rewards_PN, "max@k")
        if self.baseline in ("centred", "zscore"):
            check_k_below_n(self.k, rewards_PN, f"baseline `{self.baseline}`")
        groups = sort_groups(rewards_PN)
        return groups.unsort(BASELINES[self.baseline](groups, self.k))


@dataclass(frozen=True)
class PassKTraining(Objective):
    """Pass@k Training (arXiv:2508.10751): (E[max over I | i in I] - max@k) / std of max over I, over n.

    The authors' closed form is for binary rewards; this is the same mean over all k-subsets for any rewards. Dividing
    by the standard deviation rescales prompts, so it is biased; 0 where every subset has the same maximum.
    """

    includes_ratio: ClassVar[bool] = False
    k: int
    "Size of the subsets, 1 <= k < num_completions."

    def __post_init__(self) -> None:
        check_k(self.k)

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. ValueError unless k < N."""
        check_k_of_n(self.k, rewards_PN, "Pass@k Training")
        check_k_below_n(self.k, rewards_PN, "Pass@k Training")
        groups = sort_groups(rewards_PN)
        weights_PN = top_rank_weights(groups.num_samples_P, groups.rewards_PN.shape[1], self.k)
        deficits_PN = groups.rewards_PN - groups.best_P1
        mean_P1 = (weights_PN * deficits_PN).sum(-1, keepdim=True)
        std_P1 = (weights_PN * (deficits_PN - mean_P1).square()).sum(-1, keepdim=True).sqrt()
        n_P1 = groups.num_samples_P.unsqueeze(-1)
        # E[max | i in I] - max@k is the centred difference times P(i not in I) = (n - k) / n
        advantages_PN = centred_credits(groups, self.k) * (n_P1 - self.k) / self.k
        advantages_PN = torch.where(std_P1 > 0, advantages_PN / torch.where(std_P1 > 0, std_P1, 1.0), 0.0)
        return groups.unsort(per_sample(advantages_PN, groups.is_present_PN))


def plain_credits(groups: SortedGroups, k: int) -> Tensor:
    """c_i = a_i r_i + sum_{j>i} a_j (k-1)/(j-1) r_j, in rank order (arXiv:2505.15201, eq. 27)."""
    weights_PN = top_rank_weights(groups.num_samples_P, groups.rewards_PN.shape[1], k)
    pair_weights_PN = weights_PN * (k - 1) / (groups.ranks_PN - 1).clamp(min=1)
    return weights_PN * groups.rewards_PN + sum_above(pair_weights_PN * groups.rewards_PN)


def loo1_credits(groups: SortedGroups, k: int) -> Tensor:
    """sum_{t<i} gap_t a_{t+1}: the gain of i over the best of the others, over subsets where i is the best."""
    weights_PN = top_rank_weights(groups.num_samples_P, groups.rewards_PN.shape[1], k)
    return sum_below(groups.gaps_PN * weights_PN.roll(-1, dims=-1))


def centred_credits(groups: SortedGroups, k: int) -> Tensor:
    """(k/n) A_i = [sum_{t<i} gap_t t a_t - sum_{t>=i} gap_t (n - t) a_t] / (n - k); 0 in groups of n <= k.

    A_i = E[max | i in I] - E[max | i not in I] with max over I = r_(n) - sum_t gap_t [no member of I above rank t].
    """
    n_P1 = groups.num_samples_P.unsqueeze(-1)
    weights_PN = top_rank_weights(groups.num_samples_P, groups.rewards_PN.shape[1], k)
    # with n <= k no gap has weight; the clamp only avoids a division by 0
    return gains_minus_losses(groups, weights_PN) / (n_P1 - k).clamp(min=1)


def gains_minus_losses(groups: SortedGroups, weights_PN: Tensor) -> Tensor:
    """sum_{t<i} gap_t t w_t - sum_{t>=i} gap_t (n - t) w_t in rank order; sums to 0 over the group."""
    weighted_gaps_PN = groups.gaps_PN * weights_PN
    gain_PN = sum_below(weighted_gaps_PN * groups.ranks_PN)
    loss_per_rank_PN = weighted_gaps_PN * (groups.num_samples_P.unsqueeze(-1) - groups.ranks_PN)
    return gain_PN - (sum_above(loss_per_rank_PN) + loss_per_rank_PN)


def z_scored_credits(groups: SortedGroups, k: int) -> Tensor:
    """Z-scores of the centred credits (those of the plain ones are the same), over n."""
    return per_sample(z_scores(centred_credits(groups, k), groups.is_present_PN), groups.is_present_PN)


BASELINES = {"centred": centred_credits, "loo1": loo1_credits, "zscore": z_scored_credits, "none": plain_credits}


def sum_above(values_PN: Tensor) -> Tensor:
    """Sum over the ranks above each rank."""
    return torch.nn.functional.pad(values_PN.flip(-1).cumsum(-1).flip(-1)[:, 1:], (0, 1))


def sum_below(values_PN: Tensor) -> Tensor:
    """Sum over the ranks below each rank."""
    return torch.nn.functional.pad(values_PN.cumsum(-1)[:, :-1], (1, 0))


def check_k(k: float) -> None:
    """Refuse k < 1 with ValueError."""
    if not k >= 1:
        raise ValueError(f"`k` is {k}, must be at least 1")


def check_loo1(k: int, baseline: str) -> None:
    """Refuse LOO-1 at k = 1, where no other member is left to compare with; ValueError."""
    if baseline == "loo1" and k == 1:
        raise ValueError(
            "`baseline` is loo1 with `k` 1: that is plain REINFORCE without a baseline; use RLOO for k = 1"
        )


def check_k_of_n(k: int, rewards_PN: Tensor, what: str) -> None:
    """Refuse k above the group size with ValueError."""
    if k > rewards_PN.shape[-1]:
        raise ValueError(
            f"`objective.k` is {k}, but `num_completions` is {rewards_PN.shape[-1]}: {what} needs k <= n; "
            "PlugInMaxAtK takes a larger k, with bias"
        )


def check_k_below_n(k: int, rewards_PN: Tensor, what: str) -> None:
    """Refuse k equal to the group size, where that makes every credit zero; ValueError."""
    if k == rewards_PN.shape[-1]:
        raise ValueError(
            f"`objective.k` and `num_completions` are both {k}: {what} needs k < n, "
            "because the only subset holds every sample and nothing is left to compare it with"
        )
