"""Exact off-policy max@k credits. Shapes: P prompts, N completions per prompt.

arXiv:2510.23393 calls the exact correction exponentially hard and expands it to first order; with rewards sorted it is
a recursion over ranks in O(nk) (see `subset_law`), and this is not an approximation. With rho = 1 it is `MaxAtK`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from maxk_lightning.objectives.group import SortedGroups, clamped_log_ratios, sort_groups
from maxk_lightning.objectives.objective import Objective
from maxk_lightning.objectives.on_policy import check_k, check_k_below_n, check_k_of_n, check_loo1
from maxk_lightning.objectives.subset_law import subset_law, top_gains

LOG_NORMALISER_LIMIT = 80.0
"Bound on |log E|: float32 holds e^+-80, and nothing near it can be trusted. `group_diagnostics` has the raw value."


@dataclass(frozen=True)
class ExactMaxAtK(Objective):
    """The gradient of max@k at the present policy from samples of an earlier one; unbiased where no ratio is clipped.

    With P(I) proportional to prod_{l in I} rho_l over k-subsets, pi_i = P(i in I), E = e_k(rho) / C(n, k), credits are
        none: E pi_i E[max | i in I].
        loo1: E pi_i E[max - max without i | i in I]; needs k >= 2; never negative.
        centred: E pi_i A_i with A_i = E[max | i in I] - E[max | i not in I]; needs k < n; 0 for equal rewards.
    A_i does not depend on rho_i, so the ratio is counted once. Groups that lost samples until fewer than k are left
    (k + 1 with `centred` or `self_normalise`) get credits of 0. With a `ratio_clip` no credit exceeds ratio_clip^k k/n
    times the range of the rewards (`none`: times the largest |reward|; `self_normalise`: the smaller of 1 and
    ratio_clip^2k k/n, times the range).
    """

    includes_ratio: ClassVar[bool] = True
    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    baseline: Literal["centred", "loo1", "none"] = "centred"
    "Baseline that is subtracted; all three are unbiased."
    self_normalise: bool = False
    "Whether E is left out: less variance under drift, biased; needs k < n, as at k = n the correction would cancel."
    ratio_clip: float | None = 1.5
    "Bound: ratios stay in [1 / ratio_clip, ratio_clip], biased where that binds; None: no bias, no bound (but e^20)."

    def __post_init__(self) -> None:
        check_k(self.k)
        check_loo1(self.k, self.baseline)
        check_ratio_clip(self.ratio_clip)

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. ValueError for k > N, and for k = N with `centred` or `self_normalise`."""
        check_k_of_n(self.k, rewards_PN, "max@k")
        if self.baseline == "centred":
            check_k_below_n(self.k, rewards_PN, "baseline `centred`")
        if self.self_normalise:
            check_k_below_n(self.k, rewards_PN, "`self_normalise`")
        groups = sort_groups(rewards_PN)
        log_ratios_PN = sorted_log_ratios(groups, rewards_PN, log_ratios_PN, self.ratio_clip)
        credits_PN, log_normaliser_P = BASELINES[self.baseline](groups, log_ratios_PN, self.k)
        if self.self_normalise:
            has_others_P1 = (groups.num_samples_P > self.k).unsqueeze(-1)
            return groups.unsort(torch.where(has_others_P1, credits_PN, 0.0))
        return groups.unsort(credits_PN * normaliser(log_normaliser_P).unsqueeze(-1))


def check_ratio_clip(ratio_clip: float | None) -> None:
    """Refuse a clip of 1 or less with ValueError."""
    if ratio_clip is not None and not ratio_clip > 1.0:
        raise ValueError(f"`ratio_clip` is {ratio_clip}, must be above 1, or null for no clip")


def normaliser(log_normaliser_P: Tensor) -> Tensor:
    """E of every group, within what float32 holds."""
    return log_normaliser_P.clamp(-LOG_NORMALISER_LIMIT, LOG_NORMALISER_LIMIT).exp()


def sorted_log_ratios(
    groups: SortedGroups, rewards_PN: Tensor, log_ratios_PN: Tensor, ratio_clip: float | None = None
) -> Tensor:
    """Bring clamped log-ratios into rank order, -inf where missing."""
    log_ratios_PN = groups.sort_like(clamped_log_ratios(rewards_PN, log_ratios_PN))
    if ratio_clip is not None:
        bound = torch.tensor(ratio_clip, dtype=torch.float64).log().item()
        log_ratios_PN = log_ratios_PN.clamp(-bound, bound)
    return log_ratios_PN.masked_fill(groups.is_present_PN.logical_not(), -torch.inf)


def plain_credits(groups: SortedGroups, log_ratios_PN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pi_i E[max | i in I] in rank order, and log E."""
    law = subset_law(groups.rewards_PN, log_ratios_PN, groups.num_samples_P, k)
    return law.value_with_PN, law.log_normaliser_P


def loo1_credits(groups: SortedGroups, log_ratios_PN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pi_i E[max - max without i | i in I] in rank order, and log E."""
    return top_gains(groups.gaps_PN, log_ratios_PN, groups.num_samples_P, k)


def centred_credits(groups: SortedGroups, log_ratios_PN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pi_i A_i in rank order, and log E; 0 in groups of n <= k. Rewards count from the best: all terms are negative."""
    below_best_PN = groups.rewards_PN - groups.best_P1
    law = subset_law(below_best_PN, log_ratios_PN, groups.num_samples_P, k)
    return law.centred((groups.num_samples_P > k).unsqueeze(-1)), law.log_normaliser_P


BASELINES = {"centred": centred_credits, "loo1": loo1_credits, "none": plain_credits}
