"""Advantages relative to the group. Shapes: P prompts, N completions per prompt.

None of these takes a k; RLOO is the one without bias, for max@1. Published advantages are divided by n, the number of
samples in the group, as their losses do (see `Objective`). All need groups of two samples or more, else ValueError; a
group that lost samples until one is left gets credits of 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxk_lightning.estimators import check_binary
from maxk_lightning.objectives.group import (
    deviations,
    largest,
    per_sample,
    present_rewards,
    require_group_size,
    z_scores,
)
from maxk_lightning.objectives.objective import Objective

ALONE = "a sample without others to compare with gets no credit"


@dataclass(frozen=True)
class GRPO(Objective):
    """(r_i - mean r) / std r with the sample standard deviation, 0 where all rewards are equal (arXiv:2402.03300)."""

    includes_ratio: ClassVar[bool] = False
    scale_by_std: bool = True
    "Whether to divide by the standard deviation; without it, this is `DrGRPO`."

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. Biased for the mean reward: the std comes from the same samples."""
        require_group_size(rewards_PN.shape[1], 2, "GRPO", ALONE)
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        advantage = z_scores if self.scale_by_std else deviations
        return per_sample(advantage(rewards_PN, is_present_PN), is_present_PN)


@dataclass(frozen=True)
class DrGRPO(Objective):
    """r_i - mean r (arXiv:2503.20783); goes with the `constant` token normalisation.

    The true gradient of the mean reward times (n - 1) / n, because r_i is inside its own baseline.
    """

    includes_ratio: ClassVar[bool] = False

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`."""
        require_group_size(rewards_PN.shape[1], 2, "DrGRPO", ALONE)
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        return per_sample(deviations(rewards_PN, is_present_PN), is_present_PN)


@dataclass(frozen=True)
class RLOO(Objective):
    """r_i minus the mean of the others (arXiv:2402.14740): unbiased for the mean reward, that is max@1."""

    includes_ratio: ClassVar[bool] = False

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`."""
        require_group_size(rewards_PN.shape[1], 2, "RLOO", ALONE)
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        n_P1 = is_present_PN.sum(-1, keepdim=True, dtype=torch.float64)
        leave_one_out_P1 = n_P1 / (n_P1 - 1).clamp(min=1)
        return per_sample(leave_one_out_P1 * deviations(rewards_PN, is_present_PN), is_present_PN)


@dataclass(frozen=True)
class BonMaxMean(Objective):
    """r_i - mean r for the best samples of the group, 0 for the others (BoN-max mean, arXiv:2412.15287)."""

    includes_ratio: ClassVar[bool] = False

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. All tied best samples are rewarded."""
        require_group_size(rewards_PN.shape[1], 2, "BonMaxMean", ALONE)
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        is_best_PN = rewards_PN == largest(rewards_PN, is_present_PN)
        return per_sample(deviations(rewards_PN, is_present_PN) * is_best_PN, is_present_PN)


@dataclass(frozen=True)
class BonMaxSecond(Objective):
    """The gap to the largest reward strictly below for the best samples, 0 for the others (arXiv:2503.19595).

    Follows arXiv:2510.23393 in what "second" means. Tang et al. count ties: there a tied best sample gets 0. In a group
    of equal rewards there is no second: credits are 0. Without ties this is `MaxAtK(k=n, baseline="loo1")` over n.
    """

    includes_ratio: ClassVar[bool] = False

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`."""
        require_group_size(rewards_PN.shape[1], 2, "BonMaxSecond", ALONE)
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        best_P1 = largest(rewards_PN, is_present_PN)
        is_below_PN = is_present_PN & (rewards_PN < best_P1)
        second_P1 = torch.where(is_below_PN.any(-1, keepdim=True), largest(rewards_PN, is_below_PN), best_P1)
        return per_sample((best_P1 - second_P1) * (rewards_PN == best_P1), is_present_PN)


@dataclass(frozen=True)
class MaxRL(Objective):
    """(r_i - mean r) / mean r for binary rewards, 0 where nothing succeeds (arXiv:2602.02710).

    Unbiased for the gradient of sum_{k=1}^{n-1} pass@k / k, the series of log p cut after n - 1 terms. It has no
    meaning for fractions, which are refused.
    """

    includes_ratio: ClassVar[bool] = False

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. ValueError for rewards other than 0, 1 and NaN."""
        require_group_size(rewards_PN.shape[1], 2, "MaxRL", ALONE)
        try:
            check_binary(rewards_PN)
        except ValueError as error:
            raise ValueError(
                f"`objective`: MaxRL is defined for binary rewards only (arXiv:2602.02710): {error}"
            ) from error
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        mean_P1 = rewards_PN.sum(-1, keepdim=True) / is_present_PN.sum(-1, keepdim=True).clamp(min=1)
        advantages_PN = deviations(rewards_PN, is_present_PN) / torch.where(mean_P1 > 0, mean_P1, 1.0)
        return per_sample(advantages_PN, is_present_PN)


@dataclass(frozen=True)
class RSGRPO(Objective):
    """Risk-sensitive GRPO (arXiv:2509.24261): (e^{beta r_i} / mean_j e^{beta r_j} - 1) / beta.

    Ascends (1/beta) log E[e^{beta r}], from the mean (beta to 0) towards the maximum; biased by the sampled mean in the
    denominator. Does not depend on k.
    """

    includes_ratio: ClassVar[bool] = False
    beta: float = 2.0
    "Risk appetite, positive; 2 is the authors' choice."

    def __post_init__(self) -> None:
        if not 0.0 < self.beta < float("inf"):
            raise ValueError(f"`beta` is {self.beta}, must be positive and finite; as beta goes to 0 this is `DrGRPO`")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`."""
        require_group_size(rewards_PN.shape[1], 2, "RSGRPO", ALONE)
        rewards_PN, is_present_PN = present_rewards(rewards_PN)
        weights_PN = (self.beta * (rewards_PN - largest(rewards_PN, is_present_PN))).exp() * is_present_PN
        mean_P1 = weights_PN.sum(-1, keepdim=True) / is_present_PN.sum(-1, keepdim=True).clamp(min=1)
        mean_P1 = torch.where(mean_P1 > 0, mean_P1, 1.0)
        return per_sample(deviations(weights_PN, is_present_PN) / mean_P1 / self.beta, is_present_PN)
