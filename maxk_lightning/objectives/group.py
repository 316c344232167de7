"""Groups with missing samples: checks, sorting, means.

Shapes: P prompts, N completions per prompt; a group has n <= N samples, the others are NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maxk_lightning.estimators import check_rewards

LOG_RATIO_LIMIT = 20.0
"Bound on |log rho| before exp; a ratio of e^20 = 5e8 is no longer a correction, and larger ones would overflow."
EQUAL_REWARDS_TOLERANCE = 1e-12
"Share of the largest value below which a standard deviation is rounding noise: dividing by it would amplify nothing."


@dataclass(frozen=True, slots=True)
class SortedGroups:
    """Rewards in ascending order, missing samples last."""

    rewards_PN: Tensor
    "Rewards, float64, ascending; 0 where missing."
    is_present_PN: Tensor
    "Whether a rank holds a sample; True for the first n ranks."
    order_PN: Tensor
    "Column of the sample at each rank."
    num_samples_P: Tensor
    "Number of samples n, float64."
    ranks_PN: Tensor
    "1-based ranks, float64."
    best_P1: Tensor
    "Largest reward of each group."
    gaps_PN: Tensor
    "gaps[t] = r_(t+1) - r_(t) >= 0 at rank t < n, else 0."

    def sort_like(self, values_PN: Tensor) -> Tensor:
        """Bring values given per sample into rank order."""
        return values_PN.gather(-1, self.order_PN)

    def unsort(self, values_PN: Tensor) -> Tensor:
        """Bring values in rank order back to the samples; 0 where missing."""
        values_PN = torch.where(self.is_present_PN, values_PN, 0.0)
        return torch.zeros_like(values_PN).scatter(-1, self.order_PN, values_PN)


def sort_groups(rewards_PN: Tensor) -> SortedGroups:
    """Sort each group; ValueError unless rewards are [P, N] and finite or NaN."""
    check_rewards(rewards_PN)
    ordered = rewards_PN.detach().to(torch.float64).sort(dim=-1, stable=True)
    is_present_PN = ordered.values.isnan().logical_not()
    rewards_PN = ordered.values.nan_to_num(nan=0.0)
    steps_PM = rewards_PN.diff(dim=-1) * is_present_PN[:, 1:]
    return SortedGroups(
        rewards_PN=rewards_PN,
        is_present_PN=is_present_PN,
        order_PN=ordered.indices,
        num_samples_P=is_present_PN.sum(-1).to(torch.float64),
        ranks_PN=torch.ones_like(rewards_PN).cumsum(-1),
        best_P1=largest(rewards_PN, is_present_PN),
        gaps_PN=torch.nn.functional.pad(steps_PM, (0, 1)),
    )


def present_rewards(rewards_PN: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards in float64 with 0 where missing, and whether each sample is present."""
    check_rewards(rewards_PN)
    is_present_PN = rewards_PN.isnan().logical_not()
    return rewards_PN.detach().to(torch.float64).nan_to_num(nan=0.0), is_present_PN


def clamped_log_ratios(rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
    """Log-ratios in float64 within +-LOG_RATIO_LIMIT, 0 where missing; ValueError for NaN or a wrong shape."""
    if log_ratios_PN.shape != rewards_PN.shape:
        raise ValueError(f"log-ratios have shape {tuple(log_ratios_PN.shape)}, rewards {tuple(rewards_PN.shape)}")
    log_ratios_PN = torch.where(rewards_PN.isnan(), 0.0, log_ratios_PN.detach().to(torch.float64))
    if log_ratios_PN.isnan().any():
        raise ValueError("the log-ratio of a sample that has a reward is NaN")
    return log_ratios_PN.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def require_group_size(num_completions: int, smallest: int, key: str, reason: str) -> None:
    """Refuse a configuration whose groups are too small for an objective; ValueError naming both keys."""
    if num_completions < smallest:
        raise ValueError(f"{key} needs `num_completions` of at least {smallest}, not {num_completions}: {reason}")


def largest(values_PN: Tensor, is_present_PN: Tensor) -> Tensor:
    """Largest value of each group, [P, 1]; 0 for an empty group."""
    best_P1 = torch.where(is_present_PN, values_PN, -torch.inf).amax(-1, keepdim=True)
    return torch.where(is_present_PN.any(-1, keepdim=True), best_P1, 0.0)


def deviations(values_PN: Tensor, is_present_PN: Tensor) -> Tensor:
    """Values minus their group's mean, 0 where missing; exactly 0 in a group of equal values."""
    shifted_PN = torch.where(is_present_PN, values_PN - largest(values_PN, is_present_PN), 0.0)
    n_P1 = is_present_PN.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(is_present_PN, shifted_PN - shifted_PN.sum(-1, keepdim=True) / n_P1, 0.0)


def z_scores(values_PN: Tensor, is_present_PN: Tensor) -> Tensor:
    """Deviations over the sample standard deviation (n - 1); 0 in a group of equal values or of one sample."""
    deviations_PN = deviations(values_PN, is_present_PN)
    degrees_P1 = (is_present_PN.sum(-1, keepdim=True) - 1).clamp(min=1)
    std_P1 = (deviations_PN.square().sum(-1, keepdim=True) / degrees_P1).sqrt()
    scale_P1 = torch.where(is_present_PN, values_PN.abs(), 0.0).amax(-1, keepdim=True)
    is_spread_P1 = std_P1 > EQUAL_REWARDS_TOLERANCE * scale_P1
    return torch.where(is_spread_P1, deviations_PN / torch.where(is_spread_P1, std_P1, 1.0), 0.0)


def per_sample(advantages_PN: Tensor, is_present_PN: Tensor) -> Tensor:
    """Credits of a method whose loss averages over the group: its advantages over n; 0 where missing."""
    n_P1 = is_present_PN.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(is_present_PN, advantages_PN, 0.0) / n_P1


def bisected(is_low: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, num_halvings: int) -> Tensor:
    """Find the largest value from `low` to `high` at which `is_low` still holds, for each element.

    It is too small by at most (high - low) / 2^num_halvings.

    >>> bisected(lambda x: x <= 0.7, torch.zeros(1), torch.ones(1), num_halvings=3)
    tensor([0.6250])
    """
    for _ in range(num_halvings):
        middle = (low + high) / 2
        holds = is_low(middle)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low
