"""Weighted sums of the k sorted rewards of a subset: means of the top, quantiles, tails.

With r_(1) <= .. <= r_(k) the rewards of a subset, f(I) = sum_t w_t r_(t). The maximum is w = (0, .., 0, 1), and all
such f cost the same O(n k): see `subset_law.rank_law`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from maxk_lightning.objectives.group import SortedGroups
from maxk_lightning.objectives.on_policy import check_k
from maxk_lightning.objectives.subset_law import SubsetLaw, rank_law
from maxk_lightning.objectives.subset_objective import Baseline, SubsetObjective

ROUNDING = 1e-9
"Tolerance of q k: .7 times 10 is rank 7, not the rank above 7.000000000000001."


class RankObjective(SubsetObjective, Protocol):
    """A weighted sum of the sorted rewards of a subset."""

    if TYPE_CHECKING:  # see `SubsetObjective`

        @property
        def weights(self) -> Sequence[float]:
            """k weights, the first one that of the smallest reward."""

    def law(self, groups: SortedGroups, log_ratios_PN: Tensor, behaviours_PN: Tensor) -> SubsetLaw:
        """See `SubsetObjective`."""
        return rank_law(groups.gaps_PN, log_ratios_PN, groups.num_samples_P, self.weights)

    def ceiling(self, groups: SortedGroups, behaviours_PN: Tensor) -> Tensor:
        """See `SubsetObjective`."""
        return math.fsum(self.weights) * groups.best_P1


@dataclass(frozen=True)
class RankWeighted(RankObjective):
    """sum_t w_t r_(t) over the sorted rewards of k samples, with any weights; see `SubsetObjective`."""

    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    weights: list[float]
    "k finite weights, the first one that of the smallest reward."
    baseline: Baseline = "centred"
    "Baseline that is subtracted."

    def __post_init__(self) -> None:
        check_k(self.k)
        if len(self.weights) != self.k:
            raise ValueError(f"`weights` has {len(self.weights)} numbers, must have `k` ({self.k})")
        if not torch.tensor(self.weights).isfinite().all():
            raise ValueError(f"`weights` is {self.weights}, must be finite")


@dataclass(frozen=True)
class TopMMean(RankObjective):
    """The mean of the m best of k samples: m = 1 is `MaxAtK`, m = k is `RLOO`; see `SubsetObjective`.

    >>> TopMMean(k=4, m=2).weights
    (0.0, 0.0, 0.5, 0.5)
    """

    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    m: int
    "How many of them the user keeps, 1 <= m <= k."
    baseline: Baseline = "centred"
    "Baseline that is subtracted."

    def __post_init__(self) -> None:
        check_k(self.k)
        if not 1 <= self.m <= self.k:
            raise ValueError(f"`m` is {self.m}, must be between 1 and `k` ({self.k})")

    @property
    def weights(self) -> Sequence[float]:
        """1/m for each of the m best."""
        return tail_weights(self.k, self.m)


@dataclass(frozen=True)
class SubsetQuantile(RankObjective):
    """The q-quantile of the rewards of k samples: the ceil(q k)-th smallest; see `SubsetObjective`.

    No interpolation: it is the smallest reward with at least a share q of the k at or below it.

    >>> SubsetQuantile(k=4, q=0.5).weights
    (0.0, 1.0, 0.0, 0.0)
    """

    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    q: float
    "Share in [0, 1]; 1: the best of them, as `MaxAtK`, .5: the (lower) median, 0: the worst."
    baseline: Baseline = "centred"
    "Baseline that is subtracted."

    def __post_init__(self) -> None:
        check_k(self.k)
        if not 0.0 <= self.q <= 1.0:
            raise ValueError(f"`q` is {self.q}, must be in [0, 1]")

    @property
    def weights(self) -> Sequence[float]:
        """1 for one rank."""
        rank = max(1, math.ceil(self.q * self.k - ROUNDING))
        return tuple(float(t == rank) for t in range(1, self.k + 1))


@dataclass(frozen=True)
class CVaR(RankObjective):
    """The mean of a tail of the rewards of k samples (conditional value at risk); see `SubsetObjective`.

    The tail holds share * k samples; a rank that is partly in it counts in part, as in Rockafellar and Uryasev.

    >>> CVaR(k=4, share=0.375).weights  # the best one and half of the second
    (0.0, 0.0, 0.3333333333333333, 0.6666666666666666)
    """

    k: int
    "Samples that the user will draw, 1 <= k <= num_completions."
    share: float
    "Share of the k in the tail, in (0, 1]; 1: their mean, 1 / k or less: the best (or worst) of them."
    tail: Literal["upper", "lower"] = "upper"
    "`upper`: the best of them, `lower`: the worst."
    baseline: Baseline = "centred"
    "Baseline that is subtracted."

    def __post_init__(self) -> None:
        check_k(self.k)
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"`share` is {self.share}, must be in (0, 1]")

    @property
    def weights(self) -> Sequence[float]:
        """1 / (share k) for the ranks of the tail, in part for the one where it ends."""
        upper = tail_weights(self.k, self.share * self.k)
        return upper if self.tail == "upper" else upper[::-1]


def tail_weights(k: int, size: float) -> tuple[float, ...]:
    """Return k weights of the mean of the `size` best, smallest reward first; `size` need not be whole."""
    size = max(1.0, size)
    return tuple(min(1.0, max(0.0, size - (k - t))) / size for t in range(1, k + 1))
