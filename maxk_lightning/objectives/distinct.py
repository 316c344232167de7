"""The best of k samples, and how many different right answers are among them. P prompts, N completions per prompt."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from maxk_lightning.objectives.group import SortedGroups
from maxk_lightning.objectives.objective import is_alike
from maxk_lightning.objectives.on_policy import check_k
from maxk_lightning.objectives.subset_law import SubsetLaw, is_first, missing_law, subset_law
from maxk_lightning.objectives.subset_objective import Baseline, SubsetObjective


@dataclass(frozen=True)
class DistinctMaxAtK(SubsetObjective):
    """max over I + weight * (number of different behaviours among the correct samples of I); see `SubsetObjective`.

    A behaviour is what a program puts out on all tests (`Score.behaviour`); a correct sample whose behaviour is unknown
    counts for the maximum only. Where a test has one right output, all that pass every test behave alike: with the
    default `correct_at` the number is then 0 or 1. It separates samples where a checker accepts several outputs, and
    with `correct_at` below 1, where it counts different ways to be almost right.

    O(n k) for the maximum and for every behaviour. A_i is at most the range of the rewards plus `weight`.
    """

    needs_behaviours: ClassVar[bool] = True
    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    weight: float = 0.1
    "Value of one more behaviour, in units of reward; 0: `MaxAtK`."
    correct_at: float = 1.0
    "Reward from which a sample is correct."
    baseline: Baseline = "centred"
    "Baseline that is subtracted."

    def __post_init__(self) -> None:
        check_k(self.k)
        if not 0.0 <= self.weight < float("inf"):
            raise ValueError(f"`weight` is {self.weight}, must be finite and not negative")
        if not -float("inf") < self.correct_at < float("inf"):
            raise ValueError(f"`correct_at` is {self.correct_at}, must be a finite reward")

    def law(self, groups: SortedGroups, log_ratios_PN: Tensor, behaviours_PN: Tensor) -> SubsetLaw:
        """See `SubsetObjective`."""
        best = subset_law(groups.rewards_PN - groups.best_P1, log_ratios_PN, groups.num_samples_P, self.k)
        is_alike_PNN = is_alike(groups.is_present_PN & (groups.rewards_PN >= self.correct_at), behaviours_PN)
        missed = missing_law(is_alike_PNN, log_ratios_PN, groups.num_samples_P, best, self.k)
        return replace(
            best,
            value_with_PN=best.value_with_PN + self.weight * missed.value_with_PN,
            value_without_PN=best.value_without_PN + self.weight * missed.value_without_PN,
        )

    def ceiling(self, groups: SortedGroups, behaviours_PN: Tensor) -> Tensor:
        """The best reward, plus `weight` for every behaviour; see `SubsetObjective`."""
        rewards_PN = groups.rewards_PN.masked_fill(groups.is_present_PN.logical_not(), torch.nan)
        return groups.best_P1 + self.weight * distinct_correct(rewards_PN, behaviours_PN, self.correct_at).unsqueeze(-1)


def distinct_correct(rewards_PN: Tensor, behaviours_PN: Tensor, correct_at: float = 1.0) -> Tensor:
    """Count the different known behaviours among the correct samples of each group: counts_P, float64.

    >>> distinct_correct(torch.tensor([[1.0, 1.0, 1.0, 0.5]]), torch.tensor([[4, 4, 0, 2]]))
    tensor([2.], dtype=torch.float64)
    """
    return is_first(is_alike(rewards_PN >= correct_at, behaviours_PN)).sum(-1, dtype=torch.float64)
