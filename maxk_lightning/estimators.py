"""Unbiased estimates of max@k and pass@k from the rewards of a group.

Shapes: P prompts, N completions per prompt, K values of k. NaN marks a missing sample, which is left out of its group,
so groups may be uneven. Everything is computed and returned in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def max_at_k(rewards_PN: Tensor, ks: Sequence[int]) -> Tensor:
    """Estimate E[max of k fresh samples] for every prompt and every k: values_PK, float64.

    The mean of the maximum over all k-subsets of the group (arXiv:2510.23393, section 3), unbiased; with 0/1 rewards it
    is pass@k. Ties need no care: the value depends on the rewards alone. k = 1 is the mean and k = n the maximum.

    >>> max_at_k(torch.tensor([[0.0, 1.0, 0.5, 0.5]]), [1, 2, 4])
    tensor([[0.5000, 0.7500, 1.0000]], dtype=torch.float64)

    Raises:
        ValueError: a k is below 1 or above the number of samples of a group, or a reward is infinite.
    """
    check_rewards(rewards_PN)
    num_samples_P = count_samples(rewards_PN)
    check_ks(ks, num_samples_P)
    sorted_PN = rewards_PN.to(torch.float64).sort(dim=-1).values.nan_to_num(nan=0.0)  # NaN sorts last
    num_ranks = rewards_PN.shape[1]
    if not len(ks):
        return sorted_PN.new_empty(len(sorted_PN), 0)
    return torch.stack([(top_rank_weights(num_samples_P, num_ranks, k) * sorted_PN).sum(-1) for k in ks], dim=-1)


def pass_at_k(is_correct_PN: Tensor, ks: Sequence[int]) -> Tensor:
    """Estimate the probability that one of k fresh samples is correct: values_PK, float64.

    1 - C(n - c, k) / C(n, k) with c correct among n samples (arXiv:2107.03374, eq. 1).

    >>> pass_at_k(torch.tensor([[True, False, False, False]]), [1, 2])
    tensor([[0.2500, 0.5000]], dtype=torch.float64)

    Raises:
        ValueError: as `max_at_k`, and for anything but 0, 1, True, False and NaN.
    """
    check_binary(is_correct_PN)
    return max_at_k(is_correct_PN, ks)


def top_rank_weights(num_samples_P: Tensor, num_ranks: int, k: int) -> Tensor:
    """Compute the probability that rank j (1: the smallest) is the largest of a k-subset: C(j-1, k-1) / C(n, k).

    The result is [P, num_ranks], float64; ranks above n, the samples of a group, and whole groups with n < k, are 0. A
    ratio recurrence goes down from w_n = k/n by w_j = w_{j+1} (j + 1 - k) / j, so that no binomial is ever formed.

    >>> top_rank_weights(torch.tensor([4, 3]), num_ranks=4, k=2)
    tensor([[0.0000, 0.1667, 0.3333, 0.5000],
            [0.0000, 0.3333, 0.6667, 0.0000]], dtype=torch.float64)
    """
    n_P1 = num_samples_P.to(torch.float64).unsqueeze(-1)
    ranks_N = torch.arange(1, num_ranks + 1, dtype=torch.float64, device=num_samples_P.device)
    steps_PN = torch.where(ranks_N < n_P1, (ranks_N + 1 - k) / ranks_N, 1.0)
    steps_PN = torch.where(ranks_N == n_P1, k / ranks_N, steps_PN)
    weights_PN: Tensor = steps_PN.flip(-1).cumprod(-1).flip(-1)
    return torch.where((ranks_N >= k) & (ranks_N <= n_P1), weights_PN, 0.0)


def count_samples(rewards_PN: Tensor) -> Tensor:
    """Count the samples of each group that are not missing: num_samples_P, int64."""
    return rewards_PN.isnan().logical_not().sum(-1)


def check_rewards(rewards_PN: Tensor) -> None:
    """Refuse anything but a [P, N] tensor of finite numbers and NaN with ValueError."""
    if rewards_PN.ndim != 2:
        raise ValueError(f"rewards have shape {tuple(rewards_PN.shape)}, must be [prompts, completions]")
    if rewards_PN.isinf().any():
        raise ValueError("rewards must be finite numbers, or NaN for a missing sample; one is infinite")


def check_binary(rewards_PN: Tensor) -> None:
    """Refuse anything but 0, 1 and NaN with ValueError."""
    if not ((rewards_PN == 0) | (rewards_PN == 1) | rewards_PN.isnan()).all():
        raise ValueError("rewards must be binary here: 0, 1, or NaN for a missing sample")


def check_ks(ks: Sequence[int], num_samples_P: Tensor) -> None:
    """Refuse a k below 1 or above the smallest group with ValueError."""
    fewest = int(num_samples_P.min()) if len(num_samples_P) else 0
    for k in ks:
        if k < 1:
            raise ValueError(f"k is {k}, must be at least 1")
        if len(num_samples_P) and k > fewest:
            raise ValueError(f"k is {k}, but a group has only {fewest} samples: max@k needs k <= n")
