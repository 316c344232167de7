"""max@k for a k above the size of the group: draws are made from the samples of the group, which are put back.

Shapes: P prompts, N completions per prompt.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from maxk_lightning.objectives.group import require_group_size, sort_groups
from maxk_lightning.objectives.idle import ZERO_CREDIT
from maxk_lightning.objectives.objective import Objective
from maxk_lightning.objectives.on_policy import check_k, gains_minus_losses


@dataclass(frozen=True)
class PlugInMaxAtK(Objective):
    """The gradient of max@k with the group in place of the policy; takes a k above n, and is **biased**.

    c_i = (k/n) (E[max(r_i, best of k - 1 draws)] - the group's mean of that), where `draws` are made

        replacement: from the n samples with replacement. This is the derivative of the mean over all n^k tuples of
            samples by the weight of sample i, and the covariance of how often i is drawn with the best of k draws.
        urn: from an urn that takes back each sample with a copy of it (Polya). This is the mean of the same derivative
            over policies that may have given these samples, by the Bayesian bootstrap: draws from one of these policies
            are draws from the urn.

    With rewards sorted ascending the best of k - 1 draws is at most rank t with probability (t/n)^(k-1), or Gamma(t +
    k - 1) Gamma(n) / (Gamma(t) Gamma(n + k - 1)), for any real k (as ReMax's m, arXiv:2606.00151). Credits sum to 0;
    the bias vanishes as 1/n, k fixed; k = 1 is `DrGRPO`. `MaxAtK` draws without replacement, for k up to n, and is
    unbiased: prefer it with a larger group.

    The bias: with replacement one success in n counts as a success rate of exactly 1/n, which k draws hardly ever miss.
    So nothing seems left to gain where max@k has most to gain. With n = 8 and one success the credit is (7/8) h/8, and
    the urn, which allows for a rate far below 1/8, loses less:

        | h at k =        | 8   | 16  | 32  | 64   | 128  |
        | replacement     | 3.1 | 2.2 | .51 | .014 | 6e-6 |
        | urn             | 4.0 | 5.1 | 5.9 | 6.4  | 6.7  |

    With more successes h falls faster still: at a k far above n, nearly all credit goes to prompts with one success.
    Groups that lost samples until one is left get credits of 0.
    """

    includes_ratio: ClassVar[bool] = False
    k: float
    "Samples that the user will draw, a real number of at least 1, not so far above n that no credit is left."
    draws: Literal["replacement", "urn"] = "replacement"
    "How samples are drawn from the group."

    def __post_init__(self) -> None:
        check_k(self.k)
        if not math.isfinite(self.k):
            raise ValueError(f"`k` is {self.k}, must be finite")

    def __call__(self, rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        """Compute credits; see `Objective`. ValueError for N < 2, and for a k so far above N that all would be 0."""
        num_completions = rewards_PN.shape[1]
        require_group_size(num_completions, 2, "PlugInMaxAtK", "a sample without others to compare with gets no credit")
        if self.draws == "replacement" and self.k * (1 - 1 / num_completions) ** (self.k - 1) < ZERO_CREDIT:
            raise ValueError(
                f"`objective.k` is {self.k:g} and `num_completions` {num_completions}: that many draws with "
                "replacement miss no sample, and every credit would be 0; `objective.draws: urn` has credits"
            )
        groups = sort_groups(rewards_PN)
        n_P1 = groups.num_samples_P.clamp(min=1).unsqueeze(-1)
        weights_PN = self.k * LOG_AT_MOST[self.draws](groups.ranks_PN, n_P1, self.k - 1).clamp(max=0.0).exp()
        return groups.unsort(gains_minus_losses(groups, weights_PN) / n_P1.square())


def log_at_most_with_replacement(ranks_PN: Tensor, n_P1: Tensor, num_draws: float) -> Tensor:
    """log P(no draw is above a rank) = log (t/n)^draws."""
    return num_draws * (ranks_PN / n_P1).log()


def log_at_most_from_urn(ranks_PN: Tensor, n_P1: Tensor, num_draws: float) -> Tensor:
    """log P(no draw is above a rank) = log prod_{m < draws} (t + m) / (n + m), continued to real numbers of draws."""
    from_t_PN = (ranks_PN + num_draws).lgamma() - ranks_PN.lgamma()
    from_n_P1 = (n_P1 + num_draws).lgamma() - n_P1.lgamma()
    return from_t_PN - from_n_P1


LOG_AT_MOST = {"replacement": log_at_most_with_replacement, "urn": log_at_most_from_urn}
