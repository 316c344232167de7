"""Objectives that average a value f(I) of k-subsets I, the maximum or another: what they share.

Shapes: P prompts, N completions per prompt.

    J(rho) = 1 / C(n, k) * sum over k-subsets I of prod_{l in I} rho_l * f(I)

is E[f of k fresh samples] without bias where rho_l = pi(y_l) / pi_old(y_l). The credit of sample i, dJ / dlog rho_i,
takes from f only E[f(I); i in I] and E[f(I); i not in I] under the law P(I) proportional to prod rho. A class that has
these moments in polynomial time gets its value and all its credits from here; `ExactRatios` and `TemperedRatios` wrap
it for samples of an earlier policy.
"""

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from maxk_lightning.objectives.exact import normaliser, sorted_log_ratios
from maxk_lightning.objectives.group import SortedGroups, sort_groups
from maxk_lightning.objectives.objective import AnyTensor, Objective, given_behaviours
from maxk_lightning.objectives.on_policy import check_k_below_n, check_k_of_n
from maxk_lightning.objectives.subset_law import SubsetLaw

Baseline = Literal["centred", "none"]


class SubsetObjective(Objective, Protocol):
    """The gradient of the mean of f(I) from on-policy samples.

    Baselines, both without bias:
        centred: (k/n) (E[f | i in I] - E[f | i not in I]), needs k < n; sums to 0 over the group.
        none: the average of f over all subsets, counted as 0 for those without the sample.
    A group that lost samples until fewer than k are left (k + 1 with `centred`) gets credits of 0.
    """

    includes_ratio: ClassVar[bool] = False
    if TYPE_CHECKING:  # at run time a property would be the default of the field of that name

        @property
        def k(self) -> int:
            """Size of the subsets."""

        @property
        def baseline(self) -> Baseline:
            """Baseline that is subtracted."""

    def law(self, groups: SortedGroups, log_ratios_PN: Tensor, behaviours_PN: Tensor) -> SubsetLaw:
        """Return the moments of f(I) - ceiling in rank order.

        Args:
            groups: Sorted rewards.
            log_ratios_PN: Log-ratios of the law in rank order, -inf where missing.
            behaviours_PN: Behaviours in rank order; see `Objective`.
        """
        ...

    def ceiling(self, groups: SortedGroups, behaviours_PN: Tensor) -> Tensor:
        """Return ceiling_P1, the value of f that counts as 0, chosen so that equal rewards give exactly 0."""
        ...

    def __call__(
        self, rewards_PN: AnyTensor, log_ratios_PN: AnyTensor, behaviours_PN: AnyTensor | None = None
    ) -> AnyTensor:
        """Compute credits; see `Objective`. ValueError for k > N, and for k = N with a baseline that is zero there."""
        return subset_credits(self, rewards_PN, torch.zeros_like(rewards_PN), behaviours_PN)[0]

    def value(self, rewards_PN: Tensor, log_ratios_PN: Tensor, behaviours_PN: Tensor | None = None) -> Tensor:
        """Compute J of every group: values_P, float64; NaN in groups of fewer than k samples. ValueError for k > N."""
        check_k_of_n(self.k, rewards_PN, type(self).__name__)
        groups = sort_groups(rewards_PN)
        behaviours_PN = sorted_behaviours(self, groups, behaviours_PN)
        law = self.law(groups, sorted_log_ratios(groups, rewards_PN, log_ratios_PN), behaviours_PN)
        below_P = law.value_with_PN[:, 0] + law.value_without_PN[:, 0]  # the first rank is in I, or it is not
        values_P = normaliser(law.log_normaliser_P) * (self.ceiling(groups, behaviours_PN).squeeze(-1) + below_P)
        return values_P.masked_fill(groups.num_samples_P < self.k, torch.nan)


def subset_credits(
    objective: SubsetObjective,
    rewards_PN: Tensor,
    log_ratios_PN: Tensor,
    behaviours_PN: Tensor | None,
    ratio_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """pi_i A_i, or pi_i E[f | i in I] without a baseline, and log E; see `SubsetObjective.__call__`."""
    check_k_of_n(objective.k, rewards_PN, type(objective).__name__)
    if objective.baseline == "centred":
        check_k_below_n(objective.k, rewards_PN, "baseline `centred`")
    groups = sort_groups(rewards_PN)
    behaviours_PN = sorted_behaviours(objective, groups, behaviours_PN)
    log_ratios_PN = sorted_log_ratios(groups, rewards_PN, log_ratios_PN, ratio_clip)
    law = objective.law(groups, log_ratios_PN, behaviours_PN)
    if objective.baseline == "centred":
        credits_PN = law.centred((groups.num_samples_P > objective.k).unsqueeze(-1))
    else:
        credits_PN = law.value_with_PN + objective.ceiling(groups, behaviours_PN) * law.inclusion_PN
    return groups.unsort(credits_PN), law.log_normaliser_P


def sorted_behaviours(objective: Objective, groups: SortedGroups, behaviours_PN: Tensor | None) -> Tensor:
    """Behaviours in rank order, unknown where none were given; ValueError if the objective needs them."""
    return groups.sort_like(given_behaviours(objective, groups.rewards_PN, behaviours_PN))
