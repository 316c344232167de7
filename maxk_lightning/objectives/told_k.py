"""One policy for many k: the prompt says how many tries there will be, and the group gets the credit of that k.

Shapes: P prompts, N completions per prompt.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maxk_lightning.objectives.objective import Objective
from maxk_lightning.objectives.on_policy import MaxAtK, check_k


@dataclass(frozen=True)
class ToldK(Objective):
    """max@k for the k in a group's prompt (`{k}` in `data.template`), drawn uniformly from `ks` for every group.

    The credits are those of `MaxAtK(k)`, centred, or with `loo1` where k is the number of completions, which `centred`
    does not take. So this is the gradient of the mean of max@k over `ks`, for a policy that may act differently for
    every k: careful if the prompt says 1, varied if it says 128. Unbiased on-policy. We know of no earlier work on it.
    """

    includes_ratio: ClassVar[bool] = False
    ks: list[int]
    "Numbers of tries, each at least 1 and at most `num_completions`, none twice."
    tells: bool = True
    "False: draw a k for every group but leave it out of the prompt, as a control; the template has no `{k}`."

    def __post_init__(self) -> None:
        if not self.ks or len(set(self.ks)) < len(self.ks):
            raise ValueError(f"`ks` is {self.ks}, must be a list of different numbers of tries")
        for k in self.ks:
            check_k(k)

    @property
    def told_ks(self) -> list[int]:
        """One of these is drawn for every group; see `Objective`."""
        return self.ks

    @property
    def k(self) -> int:
        """The largest of `ks`."""
        return max(self.ks)

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor, told_ks_P: Tensor | None = None) -> Tensor:
        """Compute credits; see `Objective`. ValueError for a k above N, no `told_ks_P`, or one that is not in `ks`."""
        if told_ks_P is None or told_ks_P.shape != rewards_PN.shape[:1]:
            raise ValueError("ToldK needs `told_ks_P`, a number of tries for every group, see `Objective`")
        credits_PN = torch.zeros_like(rewards_PN, dtype=torch.float64)
        is_left_P = torch.ones_like(told_ks_P, dtype=torch.bool)
        for k in self.ks:
            is_told_P = told_ks_P == k
            credits_PN[is_told_P] = self._of(k, rewards_PN.shape[1])(rewards_PN[is_told_P], log_ratios_PN[is_told_P])
            is_left_P &= ~is_told_P
        if is_left_P.any():
            raise ValueError(f"a group was told {int(told_ks_P[is_left_P][0])} tries, `objective.ks` is {self.ks}")
        return credits_PN

    def _of(self, k: int, num_completions: int) -> MaxAtK:
        return MaxAtK(k, "centred" if k < num_completions else "loo1")
