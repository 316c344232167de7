"""Subset objectives on samples of an earlier policy: `ExactMaxAtK` and `SetAdvantage` for any f(I).

Shapes: P prompts, N completions per prompt.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from maxk_lightning.objectives.exact import check_ratio_clip, normaliser
from maxk_lightning.objectives.objective import Objective, needs_behaviours
from maxk_lightning.objectives.schedule import parts_of
from maxk_lightning.objectives.set_advantage import SetAdvantage, check_fraction, conditional, temper
from maxk_lightning.objectives.subset_objective import SubsetObjective, sorted_behaviours, subset_credits


class OnOldSamples(Objective, Protocol):
    """A subset objective on samples of an earlier policy; it needs the facts that the objective needs."""

    if TYPE_CHECKING:  # see `SubsetObjective`

        @property
        def objective(self) -> SubsetObjective:
            """What is maximised."""

    @property
    def k(self) -> int:
        """Size of the subsets."""
        return self.objective.k

    @property
    def needs_behaviours(self) -> bool:
        """See `Objective`."""
        return needs_behaviours(self.objective)


@dataclass(frozen=True)
class ExactRatios(OnOldSamples):
    """The gradient of a subset objective at the present policy; unbiased where no ratio is clipped.

    E pi_i A_i, or without a baseline E pi_i E[f | i in I]; for the maximum this is `ExactMaxAtK`, see there.
    """

    includes_ratio: ClassVar[bool] = True
    objective: SubsetObjective
    "What is maximised: `TopMMean`, `DistinctMaxAtK`, or another `SubsetObjective`."
    ratio_clip: float | None = 1.5
    "Bound: ratios stay in [1 / ratio_clip, ratio_clip], biased where that binds; None: no bias, no bound (but e^20)."

    def __post_init__(self) -> None:
        check_ratio_clip(self.ratio_clip)
        check_subset_objective(self.objective, "ExactRatios")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor, behaviours_PN: Tensor | None = None) -> Tensor:
        """Compute credits; see `SubsetObjective`."""
        credits_PN, log_normaliser_P = subset_credits(
            self.objective, rewards_PN, log_ratios_PN, behaviours_PN, self.ratio_clip
        )
        return credits_PN * normaliser(log_normaliser_P).unsqueeze(-1)


@dataclass(frozen=True)
class TemperedRatios(OnOldSamples):
    """(k/n) A_i of a subset objective with the ratios of the others tempered; for the maximum, `SetAdvantage`.

    A_i is a difference of two means of f: never beyond the range of f, whatever the ratios are. Needs k < n.
    """

    includes_ratio: ClassVar[bool] = False
    objective: SubsetObjective
    "What is maximised: `TopMMean`, `DistinctMaxAtK`, or another `SubsetObjective`, with the baseline `centred`."
    min_effective_fraction: float = 0.9
    "Share of effective k-subsets that tempering leaves, in [0, 1]; 0: never temper, 1: ratios of others not used."

    def __post_init__(self) -> None:
        check_fraction(self.min_effective_fraction)
        check_subset_objective(self.objective, "TemperedRatios")
        if self.objective.baseline != "centred":
            raise ValueError("`objective.baseline` of TemperedRatios must be centred: that is what it tempers")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor, behaviours_PN: Tensor | None = None) -> Tensor:
        """Compute credits; see `SubsetObjective`."""
        fraction = self.min_effective_fraction
        groups, log_ratios_PN, _ = temper(rewards_PN, log_ratios_PN, self.k, fraction, "TemperedRatios")
        behaviours_PN = sorted_behaviours(self.objective, groups, behaviours_PN)
        advantages_PN = conditional(groups, self.objective.law(groups, log_ratios_PN, behaviours_PN), self.k)
        return groups.unsort(self.k / groups.num_samples_P.clamp(min=1).unsqueeze(-1) * advantages_PN)

    def tempering(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """alpha_P; see `SetAdvantage.tempering`."""
        return SetAdvantage(self.k, self.min_effective_fraction).tempering(rewards_PN, log_ratios_PN)


def tempering(objective: Objective, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor | None:
    """Return alpha_P of the parts of an objective that temper ratios, averaged over them; None: no part does."""
    parts = [part for part in parts_of(objective) if isinstance(part, SetAdvantage | TemperedRatios)]
    return torch.stack([part.tempering(rewards_PN, log_ratios_PN) for part in parts]).mean(0) if parts else None


def check_subset_objective(objective: Objective, what: str) -> None:
    """Refuse an objective that is no `SubsetObjective` with ValueError."""
    if not (hasattr(objective, "law") and hasattr(objective, "ceiling")):
        raise ValueError(
            f"`objective` of {what} is {type(objective).__name__}, must be a subset objective such as TopMMean; "
            "of MaxAtK the forms are ExactMaxAtK and SetAdvantage"
        )
