"""The set advantage: what a sample adds to the best of k drawn from the present policy, without its own ratio.

Shapes: P prompts, N completions per prompt.

The exact off-policy credit (`exact`, centred) factorises. With e_m the elementary symmetric polynomial and rho_-i the
ratios of the others,

    c_i = rho_i * (k/n) A_i * e_{k-1}(rho_-i) / C(n-1, k-1)
    A_i = E[max over I | i in I] - E[max over I | i not in I]

under the law P(I) proportional to prod_{l in I} rho_l over k-subsets. rho_i occurs in the first factor only, so A_i is
an advantage for any loss that has the ratio itself, and it is a difference of two means of rewards: never beyond their
range, whatever the ratios are. The last factor has expectation 1 and a heavy tail; it is left out, which is
self-normalisation over the others and vanishes as 1/n (not at all at k = 1, where the factor is 1).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxk_lightning.objectives.exact import sorted_log_ratios
from maxk_lightning.objectives.group import SortedGroups, bisected, sort_groups
from maxk_lightning.objectives.objective import Objective
from maxk_lightning.objectives.on_policy import check_k, check_k_below_n, check_k_of_n
from maxk_lightning.objectives.subset_law import SubsetLaw, log_effective_fraction, subset_law

NUM_HALVINGS = 8
"alpha is found to 2^-8, from below."
ROUNDING = 1e-11
"Tolerance of the log of an effective fraction: equal ratios have a fraction of 1 up to this."


@dataclass(frozen=True)
class SetAdvantage(Objective):
    """(k/n) A_i with the ratios of the others tempered, rho^alpha; an advantage for a loss with a ratio per token.

    alpha is one number per group, the largest in [0, 1] at which the effective number of k-subsets of the group,
    (sum W)^2 / sum W^2 with W(I) = prod_{l in I} rho_l^alpha, is at least `min_effective_fraction` of C(n, k). That
    share falls as alpha grows, so bisection finds it. alpha = 1 is the exact law of the others, alpha = 0 is
    `MaxAtK(k, "centred")`.

    `docs/sequence_study.md` found no drift at which this follows max@k better than `MaxAtK` with the same loss. The
    more it is tempered the less it loses: hence the default.

    Needs k < n. Groups that lost samples until k or fewer are left get credits of 0. O(n k) per group and halving:
    A_i for all i comes from one recursion over the whole group, because rho_i cancels.
    """

    includes_ratio: ClassVar[bool] = False
    k: int
    "Samples that the user will draw, 1 <= k < num_completions."
    min_effective_fraction: float = 0.9
    "Share of effective k-subsets that tempering leaves, in [0, 1]; 0: never temper, 1: ratios of others not used."

    def __post_init__(self) -> None:
        check_k(self.k)
        check_fraction(self.min_effective_fraction)

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits, at most (k/n) times the range of the rewards; see `Objective`. ValueError unless k < N."""
        groups, log_ratios_PN, _ = temper(rewards_PN, log_ratios_PN, self.k, self.min_effective_fraction)
        advantages_PN = set_advantages(groups, log_ratios_PN, self.k)
        return groups.unsort(self.k / groups.num_samples_P.clamp(min=1).unsqueeze(-1) * advantages_PN)

    def tempering(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """alpha_P, float64, for the log: 1 where nothing is tempered; NaN in groups of k or fewer samples."""
        groups, _, alpha_P = temper(rewards_PN, log_ratios_PN, self.k, self.min_effective_fraction)
        return alpha_P.masked_fill(groups.num_samples_P <= self.k, torch.nan)


def temper(
    rewards_PN: Tensor, log_ratios_PN: Tensor, k: int, min_effective_fraction: float, what: str = "SetAdvantage"
) -> tuple[SortedGroups, Tensor, Tensor]:
    """Groups in rank order, alpha log rho in the same order, and alpha_P; ValueError unless k < N."""
    check_k_of_n(k, rewards_PN, what)
    check_k_below_n(k, rewards_PN, what)
    groups = sort_groups(rewards_PN)
    log_ratios_PN = sorted_log_ratios(groups, rewards_PN, log_ratios_PN)
    alpha_P = largest_alpha(log_ratios_PN, groups.num_samples_P, k, min_effective_fraction)
    return groups, tempered(log_ratios_PN, alpha_P), alpha_P


def check_fraction(min_effective_fraction: float) -> None:
    """Refuse a number outside [0, 1] with ValueError."""
    if not 0.0 <= min_effective_fraction <= 1.0:
        raise ValueError(f"`min_effective_fraction` is {min_effective_fraction}, must be in [0, 1]")


def set_advantages(groups: SortedGroups, log_ratios_PN: Tensor, k: int) -> Tensor:
    """A_i in rank order; 0 in groups of n <= k. Rewards count from the best, so that equal ones give exactly 0."""
    return conditional(
        groups, subset_law(groups.rewards_PN - groups.best_P1, log_ratios_PN, groups.num_samples_P, k), k
    )


def conditional(groups: SortedGroups, law: SubsetLaw, k: int) -> Tensor:
    """E[value | i in I] - E[value | i not in I]; 0 in groups of n <= k."""
    has_both_PN = groups.is_present_PN & (groups.num_samples_P > k).unsqueeze(-1)
    with_PN = law.value_with_PN / torch.where(has_both_PN, law.inclusion_PN, 1.0)
    without_PN = law.value_without_PN / torch.where(has_both_PN, law.exclusion_PN, 1.0)
    return torch.where(has_both_PN, with_PN - without_PN, 0.0)


def largest_alpha(log_ratios_PN: Tensor, num_samples_P: Tensor, k: int, min_effective_fraction: float) -> Tensor:
    """Largest alpha in [0, 1] at which rho^alpha leaves this share of effective k-subsets, at most 2^-8 too small."""
    least = math.log(min_effective_fraction) - ROUNDING if min_effective_fraction > 0.0 else -math.inf
    alpha_P = torch.ones_like(num_samples_P)
    is_spread_P = log_effective_fraction(log_ratios_PN, num_samples_P, k) < least
    if not is_spread_P.any():
        return alpha_P
    log_ratios_PN, num_samples_P = log_ratios_PN[is_spread_P], num_samples_P[is_spread_P]
    alpha_P[is_spread_P] = bisected(
        lambda alpha_P: log_effective_fraction(tempered(log_ratios_PN, alpha_P), num_samples_P, k) >= least,
        torch.zeros_like(num_samples_P),
        torch.ones_like(num_samples_P),
        NUM_HALVINGS,
    )
    return alpha_P


def tempered(log_ratios_PN: Tensor, alpha_P: Tensor) -> Tensor:
    """alpha log rho; missing samples stay at -inf, also for alpha = 0."""
    return torch.where(log_ratios_PN.isinf(), log_ratios_PN, alpha_P.unsqueeze(-1) * log_ratios_PN)
