"""An objective that needs behaviours, among those that do not: those of a sample are its reward's."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from maxk_lightning.objectives import Objective


@dataclass(frozen=True)
class ByReward:
    """Asks an objective with equal behaviours where rewards are equal."""

    objective: Any

    @property
    def includes_ratio(self) -> bool:
        wrapped: Objective = self.objective
        return wrapped.includes_ratio

    @property
    def k(self) -> int:
        size: int = self.objective.k
        return size

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        behaviours_PN = (rewards_PN.detach().nan_to_num(nan=0.0) * 16).round().long().abs()
        credits_PN: Tensor = self.objective(rewards_PN, log_ratios_PN, behaviours_PN)
        return credits_PN
