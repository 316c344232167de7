"""The law of a random k-subset with P(I) proportional to prod_{l in I} rho_l, in O(nk), stable at any size.

There are laws for three values of a subset: that of its top rank, a weighted sum of its sorted members, and the number
of classes that it misses.

Shapes: P prompts, N ranks (samples sorted by ascending value, missing ones last), M = k + 1 counts 0..k.

A product over 512 ratios between 0.01 and 100 leaves every float format, so no elementary symmetric polynomial e_m
is ever formed. Instead, each sample joins on its own with probability p_l = lambda rho_l / (1 + lambda rho_l). Given
that exactly k joined, the subset has the wanted law for every lambda, and with sum_l p_l near k the probability that k
join is never small. All sums have terms of one sign when the values have one: relative error about 1e-15 in float64 up
to n = 1024, k = 512.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

GRID_SIZE = 16
"Number of candidates for log lambda in each of two rounds, which leave it within 0.1 for log-ratios within +-20."
TABLE_BYTES = 2**28
"Approximate size of the tables of one piece; prompts are processed in pieces."


@dataclass(frozen=True, slots=True)
class SubsetLaw:
    """Moments of a random k-subset I and of its value; all 0 in groups of fewer than k samples."""

    log_normaliser_P: Tensor
    "log E, with E = e_k(rho) / C(n, k) the mean over k-subsets of prod rho."
    inclusion_PN: Tensor
    "pi_i = P(i in I)."
    exclusion_PN: Tensor
    "P(i not in I), without cancellation."
    value_with_PN: Tensor
    "E[value of I; i in I], not conditional."
    value_without_PN: Tensor
    "E[value of I; i not in I], not conditional."

    def centred(self, has_others_P1: Tensor) -> Tensor:
        """pi_i A_i with A_i = E[value | i in I] - E[value | i not in I]; 0 in groups without a sample outside I."""
        odds_PN = self.inclusion_PN / torch.where(has_others_P1, self.exclusion_PN, 1.0)
        return torch.where(has_others_P1, self.value_with_PN - odds_PN * self.value_without_PN, 0.0)


@dataclass(frozen=True, slots=True)
class _Tilt:
    """Independent joining: what the recursions below run on."""

    joins_NP1: Tensor
    "p_l; 0 for a missing sample."
    stays_out_NP1: Tensor
    "1 - p_l, without cancellation."
    prefixes_NPM: Tensor
    "N + 1 rows: P(m of the first t ranks joined)."
    log_normaliser_P: Tensor
    "log E; 0 in groups of fewer than k samples."
    scale_P1: Tensor
    "1 / P(exactly k joined); 0 in groups of fewer than k samples."


def log_normaliser(log_ratios_PN: Tensor, num_samples_P: Tensor, k: int) -> Tensor:
    """log E = log e_k(rho) / C(n, k) for every group; 0 in groups of fewer than k samples; -inf ratios are missing."""
    pieces = _pieces(k, log_ratios_PN, num_samples_P)
    return torch.cat([_tilt(piece_PN, n_P, k).log_normaliser_P for piece_PN, n_P in pieces])


def log_effective_fraction(log_ratios_PN: Tensor, num_samples_P: Tensor, k: int) -> Tensor:
    """log of the effective number of k-subsets, (sum W)^2 / sum W^2 with W = prod rho, over C(n, k).

    At most 0; falls when all log-ratios are multiplied by a larger number. 0 in groups of fewer than k samples.
    """
    # mean of W squared over mean of W^2: both are normalisers, of rho and of rho^2
    squares_P = log_normaliser(2 * log_ratios_PN, num_samples_P, k)
    return 2 * log_normaliser(log_ratios_PN, num_samples_P, k) - squares_P


def subset_law(values_PN: Tensor, log_ratios_PN: Tensor, num_samples_P: Tensor, k: int) -> SubsetLaw:
    """Moments where a subset has the value of its top rank; values ascending, `log_ratios_PN` -inf at missing ranks."""
    pieces = _pieces(k, values_PN, log_ratios_PN, num_samples_P)
    return _joined([_moments(values, _tilt(log_ratios, n_P, k)) for values, log_ratios, n_P in pieces])


def rank_law(gaps_PN: Tensor, log_ratios_PN: Tensor, num_samples_P: Tensor, rank_weights: Sequence[float]) -> SubsetLaw:
    """Moments where a subset of k = len(rank_weights) has the value sum_t w_t (r_(t) - r_best), t = 1 its smallest.

    With W_m = w_1 + .. + w_m and m_s the members of the subset among the first s ranks, that is
    -sum_s gap_s W_{m_s}: a sum along the ranks of functions of how many have joined.
    """
    k = len(rank_weights)
    sums_M = torch.tensor([0.0, *itertools.accumulate(rank_weights)], dtype=torch.float64, device=gaps_PN.device)
    pieces = _pieces(k, gaps_PN, log_ratios_PN, num_samples_P)
    return _joined([_rank_moments(gaps, sums_M, _tilt(log_ratios, n_P, k)) for gaps, log_ratios, n_P in pieces])


def missing_law(
    is_same_PNN: Tensor, log_ratios_PN: Tensor, num_samples_P: Tensor, whole: SubsetLaw, k: int
) -> SubsetLaw:
    """Moments where a subset has the value -(number of classes that it misses), in O(n k) per class.

    A subset that misses a class is one of the samples outside it, whose law has the same form.

    Args:
        is_same_PNN: Whether two samples are of the same class; False, on the diagonal too, for one without a class.
        log_ratios_PN: In any order; -inf where missing.
        num_samples_P: n of each group.
        whole: The same law with another value.
        k: Size of the subsets.
    """
    prompts_Q, firsts_Q = is_first(is_same_PNN).nonzero(as_tuple=True)  # Q: classes of all groups
    members_QN = is_same_PNN[prompts_Q, firsts_Q]
    num_outside_Q = num_samples_P[prompts_Q] - members_QN.sum(-1)
    outside_QN = log_ratios_PN[prompts_Q].masked_fill(members_QN, -torch.inf)
    law = subset_law(torch.zeros_like(outside_QN), outside_QN, num_outside_Q, k)
    # P(no member) = e_k(rho of the others) / e_k(rho)
    log_share_Q = _log_binomials(num_outside_Q, k) - _log_binomials(num_samples_P[prompts_Q], k)
    log_share_Q = log_share_Q + law.log_normaliser_P - whole.log_normaliser_P[prompts_Q]
    misses_Q1 = torch.where(num_outside_Q >= k, log_share_Q.exp(), 0.0).unsqueeze(-1)
    none_PN = torch.zeros_like(log_ratios_PN)
    return replace(
        whole,
        value_with_PN=none_PN.index_add(0, prompts_Q, misses_Q1 * law.inclusion_PN, alpha=-1),
        value_without_PN=none_PN.index_add(0, prompts_Q, misses_Q1 * law.exclusion_PN, alpha=-1),
    )


def top_gains(gaps_PN: Tensor, log_ratios_PN: Tensor, num_samples_P: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """E[value of I minus value of I without i; i in I] for k >= 2, and log E: gains_PN, log_normaliser_P.

    Only subsets with i on top contribute: sum_{t<i} gap_t rho_i e_{k-1}(rho_1..rho_t) / e_k(rho).
    """
    pieces = _pieces(k, gaps_PN, log_ratios_PN, num_samples_P)
    gains = [_gains(gaps, _tilt(log_ratios, n_P, k)) for gaps, log_ratios, n_P in pieces]
    gains_PN, log_normaliser_P = (torch.cat(parts) for parts in zip(*gains, strict=True))
    return gains_PN, log_normaliser_P


def is_first(is_same_PNN: Tensor) -> Tensor:
    """Whether a sample is the first one of its class: one True per class, is_first_PN."""
    return is_same_PNN.diagonal(dim1=1, dim2=2) & is_same_PNN.tril(-1).any(2).logical_not()


def _joined(moments: Sequence[tuple[Tensor, ...]]) -> SubsetLaw:
    return SubsetLaw(*(torch.cat(parts) for parts in zip(*moments, strict=True)))


def _pieces(k: int, *per_prompt: Tensor) -> list[tuple[Tensor, ...]]:
    num_ranks = per_prompt[0].shape[1]
    prompts_per_piece = max(1, TABLE_BYTES // (24 * (num_ranks + 1) * (k + 1)))  # three tables of float64
    return list(zip(*(torch.split(tensor, prompts_per_piece) for tensor in per_prompt), strict=True))


def _tilt(log_ratios_PN: Tensor, num_samples_P: Tensor, k: int) -> _Tilt:
    log_lambda_P1 = _log_lambda(log_ratios_PN, num_samples_P, k)
    log_odds_PN = log_ratios_PN + log_lambda_P1
    joins_NP1 = log_odds_PN.sigmoid().T.unsqueeze(-1).contiguous()
    stays_out_NP1 = (-log_odds_PN).sigmoid().T.unsqueeze(-1).contiguous()
    prefixes_NPM = joins_NP1.new_zeros(len(joins_NP1) + 1, len(log_ratios_PN), k + 1)
    prefixes_NPM[0, :, 0] = 1.0
    steps = zip(prefixes_NPM[:-1], prefixes_NPM[1:], joins_NP1, stays_out_NP1, strict=True)
    for before_PM, after_PM, joins_P1, stays_out_P1 in steps:
        torch.mul(before_PM, stays_out_P1, out=after_PM)
        after_PM[:, 1:].addcmul_(before_PM[:, :-1], joins_P1)
    is_possible_P = num_samples_P >= k
    # P(k joined) = lambda^k e_k(rho) prod (1 - p_l), and log(1 - p_l) = -softplus(log odds)
    log_e_k_P = prefixes_NPM[-1, :, -1].log() - k * log_lambda_P1.squeeze(-1)
    log_e_k_P = log_e_k_P + torch.nn.functional.softplus(log_odds_PN, threshold=40).sum(-1)
    log_normaliser_P = torch.where(is_possible_P, log_e_k_P - _log_binomials(num_samples_P, k), 0.0)
    scale_P1 = torch.where(is_possible_P, 1 / prefixes_NPM[-1, :, -1], 0.0).unsqueeze(-1)
    return _Tilt(joins_NP1, stays_out_NP1, prefixes_NPM, log_normaliser_P, scale_P1)


def _log_lambda(log_ratios_PN: Tensor, num_samples_P: Tensor, k: int) -> Tensor:
    """Near the root of sum_l p_l = k (n - 1/2 where n <= k, so that lambda stays finite): log_lambda_P1."""
    n_P1 = num_samples_P.clamp(min=1).unsqueeze(-1)
    size_P1 = torch.minimum(n_P1.new_tensor(float(k)), n_P1 - 0.5)
    log_odds_P1 = size_P1.log() - (n_P1 - size_P1).log()
    present_PN = log_ratios_PN.masked_fill(log_ratios_PN.isinf(), 0.0)
    low_P1 = log_odds_P1 - present_PN.amax(-1, keepdim=True)
    high_P1 = log_odds_P1 - present_PN.amin(-1, keepdim=True)
    fractions_G = torch.linspace(0, 1, GRID_SIZE, dtype=torch.float64, device=log_ratios_PN.device)
    for _ in range(2):
        candidates_PG = low_P1 + (high_P1 - low_P1) * fractions_G
        sizes_PG = (log_ratios_PN.unsqueeze(-1) + candidates_PG.unsqueeze(1)).sigmoid().sum(1)
        first_above_P1 = (sizes_PG < size_P1).sum(-1, keepdim=True).clamp(1, GRID_SIZE - 1)
        low_P1, high_P1 = candidates_PG.gather(-1, first_above_P1 - 1), candidates_PG.gather(-1, first_above_P1)
    return (low_P1 + high_P1) / 2


def _moments(values_PN: Tensor, tilt: _Tilt) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `SubsetLaw`: what the ranks below a sample have, times what the ranks above it can still add."""
    values_NP1 = values_PN.T.unsqueeze(-1)
    suffixes_N2PM = _suffixes(values_NP1, tilt)
    below_NPM = tilt.prefixes_NPM[:-1]
    with_N2P = torch.einsum("npm,nvpm->nvp", below_NPM[..., :-1], suffixes_N2PM[..., 1:])
    without_N2P = torch.einsum("npm,nvpm->nvp", below_NPM[..., :-1], suffixes_N2PM[..., :-1])
    # nobody above joins: all k are below, and the top is one of them
    tops_below_NP1 = _decaying_sums(values_NP1 * tilt.joins_NP1 * below_NPM[..., -2:-1], tilt.stays_out_NP1)
    all_below_N2P1 = torch.stack([below_NPM[..., -1:], tops_below_NP1], dim=1)
    without_N2P += (all_below_N2P1 * suffixes_N2PM[:, :1, :, -1:]).squeeze(-1)
    inclusion_PN, value_with_PN = (with_N2P * (tilt.joins_NP1 * tilt.scale_P1).mT).permute(1, 2, 0)
    exclusion_PN, value_without_PN = (without_N2P * (tilt.stays_out_NP1 * tilt.scale_P1).mT).permute(1, 2, 0)
    return tilt.log_normaliser_P, inclusion_PN, exclusion_PN, value_with_PN, value_without_PN


def _suffixes(values_NP1: Tensor, tilt: _Tilt) -> Tensor:
    """For each rank and count m so far: [0] P(the ranks above bring it to k), [1] that times the value of their top.

    At m = k nobody above joins; there [1] has the value of the rank itself, which is the top if it is the k-th to join.
    """
    num_ranks, num_prompts, _ = values_NP1.shape
    none_above_NP1 = _products_above(tilt.stays_out_NP1)
    suffixes_N2PM = values_NP1.new_zeros(num_ranks, 2, num_prompts, tilt.prefixes_NPM.shape[-1])
    suffixes_N2PM[:, 0, :, -1:] = none_above_NP1
    suffixes_N2PM[:, 1, :, -1:] = none_above_NP1 * values_NP1
    for rank in range(num_ranks - 1, 0, -1):
        above_2PM, here_2PM = suffixes_N2PM[rank], suffixes_N2PM[rank - 1, ..., :-1]
        torch.mul(above_2PM[..., :-1], tilt.stays_out_NP1[rank], out=here_2PM)
        here_2PM.addcmul_(above_2PM[..., 1:], tilt.joins_NP1[rank])
    return suffixes_N2PM


def _rank_moments(gaps_PN: Tensor, sums_M: Tensor, tilt: _Tilt) -> tuple[Tensor, ...]:
    """The fields of `SubsetLaw`: for every rank, the part of the value from the ranks below it, and from the rest."""
    costs_NPM = gaps_PN.T.unsqueeze(-1) * -sums_M  # of m having joined when a rank has been passed
    before_NPM, after_N2PM = torch.zeros_like(tilt.prefixes_NPM), _after(costs_NPM, tilt)
    steps = zip(before_NPM[:-1], before_NPM[1:], tilt.joins_NP1, tilt.stays_out_NP1, strict=True)
    for rank, (before_PM, after_PM, joins_P1, stays_out_P1) in enumerate(steps):
        torch.mul(before_PM, stays_out_P1, out=after_PM)
        after_PM[:, 1:].addcmul_(before_PM[:, :-1], joins_P1)
        after_PM.addcmul_(tilt.prefixes_NPM[rank + 1], costs_NPM[rank])
    below_NPM, made_NPM = tilt.prefixes_NPM[:-1], before_NPM[:-1]
    with_2NP = _meet(below_NPM[..., :-1], made_NPM[..., :-1], after_N2PM[..., 1:])
    without_2NP = _meet(below_NPM, made_NPM, after_N2PM)
    inclusion_PN, value_with_PN = (with_2NP * (tilt.joins_NP1 * tilt.scale_P1).squeeze(-1)).mT
    exclusion_PN, value_without_PN = (without_2NP * (tilt.stays_out_NP1 * tilt.scale_P1).squeeze(-1)).mT
    return tilt.log_normaliser_P, inclusion_PN, exclusion_PN, value_with_PN, value_without_PN


def _meet(below_NPM: Tensor, made_NPM: Tensor, after_N2PM: Tensor) -> Tensor:
    """[0] P(the ranks on both sides make up k), [1] that times the costs on both sides."""
    completes_NPM, makes_NPM = after_N2PM.unbind(1)
    costs_NPM = made_NPM * completes_NPM + below_NPM * makes_NPM
    return torch.stack([(below_NPM * completes_NPM).sum(-1), costs_NPM.sum(-1)])


def _after(costs_NPM: Tensor, tilt: _Tilt) -> Tensor:
    """For each rank and count m with it: [0] P(the ranks above bring it to k), [1] that times the costs from here."""
    num_ranks, num_prompts, num_counts = costs_NPM.shape
    after_N2PM = costs_NPM.new_zeros(num_ranks, 2, num_prompts, num_counts)
    after_N2PM[-1, 0, :, -1] = 1.0
    for rank in range(num_ranks - 1, -1, -1):
        here_2PM = after_N2PM[rank]
        if rank + 1 < num_ranks:
            torch.mul(after_N2PM[rank + 1], tilt.stays_out_NP1[rank + 1], out=here_2PM)
            here_2PM[..., :-1].addcmul_(after_N2PM[rank + 1, ..., 1:], tilt.joins_NP1[rank + 1])
        here_2PM[1].addcmul_(here_2PM[0], costs_NPM[rank])
    return after_N2PM


def _gains(gaps_PN: Tensor, tilt: _Tilt) -> tuple[Tensor, Tensor]:
    gaps_below_NP1 = _decaying_sums(gaps_PN.T.unsqueeze(-1) * tilt.prefixes_NPM[1:, :, -2:-1], tilt.stays_out_NP1)
    none_above_NP1 = _products_above(tilt.stays_out_NP1)
    gains_NP1 = tilt.joins_NP1 * gaps_below_NP1 * none_above_NP1 * tilt.scale_P1
    return gains_NP1.squeeze(-1).T, tilt.log_normaliser_P


def _decaying_sums(added_NP1: Tensor, kept_NP1: Tensor) -> Tensor:
    """x_0 = 0, x_{t+1} = kept_t x_t + added_t for t < N - 1."""
    sums_NP1 = torch.zeros_like(added_NP1)
    for rank in range(1, len(sums_NP1)):
        torch.addcmul(added_NP1[rank - 1], kept_NP1[rank - 1], sums_NP1[rank - 1], out=sums_NP1[rank])
    return sums_NP1


def _products_above(factors_NP1: Tensor) -> Tensor:
    """Product of the factors of the ranks above each rank."""
    padded_NP1 = torch.cat([factors_NP1[1:], torch.ones_like(factors_NP1[:1])])
    return padded_NP1.flip(0).cumprod(0).flip(0)


def _log_binomials(num_samples_P: Tensor, k: int) -> Tensor:
    """log C(n, k) for every group, 0 where n < k; from exact integers, so that its error is one rounding."""
    return num_samples_P.new_tensor([_log_binomial(int(n), k) for n in num_samples_P.tolist()])


@lru_cache(maxsize=4096)
def _log_binomial(n: int, k: int) -> float:
    return math.log(math.comb(n, k)) if n >= k else 0.0
