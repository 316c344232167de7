"""Numerics at sizes where subsets cannot be listed: exact rational arithmetic, and beyond every float's range."""

from fractions import Fraction
from math import comb, lcm, nan

import pytest
import torch
from torch import Tensor

from maxk_lightning.objectives import (
    ExactMaxAtK,
    MaxAtK,
    Objective,
    OffPolicyMaxAtK,
    SetAdvantage,
    group_diagnostics,
)
from maxk_lightning.objectives.subset_law import TABLE_BYTES, subset_law

TOLERANCE = 1e-12  # relative to the largest credit; issue's bound for float64


def random_group(n: int, seed: int) -> tuple[list[Fraction], list[Fraction]]:
    """Rewards on a grid (with ties and negatives), ratios log-uniform in [0.01, 100]; both exact in float64."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(-8, 17, (n,), generator=generator) / 16
    exponents = 4 * torch.rand(n, dtype=torch.float64, generator=generator) - 2
    ratios = ((10.0**exponents) * 2**20).round() / 2**20
    return [Fraction(r) for r in rewards.tolist()], [Fraction(rho) for rho in ratios.tolist()]


def symmetric_polynomials(ratios: list[Fraction], degree: int) -> list[Fraction]:
    """e_0 .. e_degree."""
    e = [Fraction(1)] + [Fraction(0)] * degree
    for rho in ratios:
        for m in range(degree, 0, -1):
            e[m] += rho * e[m - 1]
    return e


def sums_of_maxima(rewards: list[Fraction], ratios: list[Fraction], k: int) -> tuple[Fraction, Fraction]:
    """(sum over k-subsets of prod rho, the same times the maximum), in integers, which need no common divisors."""
    reward_scale = lcm(*(reward.denominator for reward in rewards))
    ratio_scale = lcm(*(rho.denominator for rho in ratios))
    ranked = sorted((int(r * reward_scale), int(rho * ratio_scale)) for r, rho in zip(rewards, ratios, strict=True))
    total = weighted = 0
    e = [1] + [0] * k
    for reward, rho in ranked:
        total += rho * e[k - 1]
        weighted += reward * rho * e[k - 1]
        for m in range(k, 0, -1):
            e[m] += rho * e[m - 1]
    assert total == e[k]
    return Fraction(total, ratio_scale**k), Fraction(weighted, reward_scale * ratio_scale**k)


def exact_credits(rewards: list[Fraction], ratios: list[Fraction], k: int, baseline: str) -> list[Fraction]:
    """Definitions of ExactMaxAtK in rational arithmetic, by leaving each sample out in turn."""
    n = len(rewards)
    total, weighted = sums_of_maxima(rewards, ratios, k)
    credits = []
    for i in range(n):
        others = rewards[:i] + rewards[i + 1 :], ratios[:i] + ratios[i + 1 :]
        total_out, weighted_out = sums_of_maxima(*others, k) if k < n else (Fraction(0), Fraction(0))
        weight_in, value_in = total - total_out, weighted - weighted_out
        if baseline == "centred":
            value_in -= weight_in * weighted_out / total_out
        elif baseline == "loo1":
            value_in -= ratios[i] * sums_of_maxima(*others, k - 1)[1]
        credits.append(value_in / comb(n, k))
    return credits


def exact_set_advantage(rewards: list[Fraction], ratios: list[Fraction], k: int, i: int) -> Fraction:
    """(k/n) A_i of one sample, its own ratio replaced by another one: it must not matter."""
    others = rewards[:i] + rewards[i + 1 :], ratios[:i] + ratios[i + 1 :]
    total, weighted = sums_of_maxima([*others[0], rewards[i]], [*others[1], Fraction(3, 7)], k)
    total_out, weighted_out = sums_of_maxima(*others, k)
    inside = (weighted - weighted_out) / (total - total_out)
    return Fraction(k, len(rewards)) * (inside - weighted_out / total_out)


def relative_error(actual_N: Tensor, exact: list[Fraction]) -> float:
    scale = max(abs(c) for c in exact) or Fraction(1)  # all zero: the best is tied and k = n
    return float(max(abs(Fraction(a) - c) for a, c in zip(actual_N.tolist(), exact, strict=True)) / scale)


@pytest.mark.parametrize(
    ("n", "k", "baseline"),
    [
        (n, k, baseline)
        for n, k in ((20, 1), (20, 2), (32, 8), (32, 31), (40, 20), (24, 24))
        for baseline in ("centred", "loo1", "none")
        if not (baseline == "centred" and k == n) and not (baseline == "loo1" and k == 1)  # both refused
    ],
)
def test_exact_credits_against_rational_arithmetic(n: int, k: int, baseline: str) -> None:
    rewards, ratios = random_group(n, seed=100 * n + k)
    rewards_PN = torch.tensor([[float(r) for r in rewards]], dtype=torch.float64)
    log_ratios_PN = torch.tensor([[float(rho) for rho in ratios]], dtype=torch.float64).log()
    off_policy_PN = ExactMaxAtK(k, baseline, ratio_clip=None)(rewards_PN, log_ratios_PN)  # type: ignore[arg-type]
    assert relative_error(off_policy_PN[0], exact_credits(rewards, ratios, k, baseline)) < TOLERANCE
    on_policy_PN = MaxAtK(k, baseline)(rewards_PN, log_ratios_PN)  # type: ignore[arg-type]
    assert relative_error(on_policy_PN[0], exact_credits(rewards, [Fraction(1)] * n, k, baseline)) < TOLERANCE


@pytest.mark.parametrize(("n", "k"), [(20, 1), (20, 2), (32, 8), (32, 31), (40, 20)])
def test_set_advantages_against_rational_arithmetic(n: int, k: int) -> None:
    rewards, ratios = random_group(n, seed=100 * n + k)
    rewards_PN = torch.tensor([[float(r) for r in rewards]], dtype=torch.float64)
    log_ratios_PN = torch.tensor([[float(rho) for rho in ratios]], dtype=torch.float64).log()
    credits_PN = SetAdvantage(k, 0.0)(rewards_PN, log_ratios_PN)
    exact = [exact_set_advantage(rewards, ratios, k, i) for i in range(n)]
    assert relative_error(credits_PN[0], exact) < TOLERANCE


def test_set_advantages_of_a_thousand_samples_against_rational_arithmetic() -> None:
    n, k, chosen = 1024, 16, [0, 1, 500, 1023]
    rewards, ratios = random_group(n, seed=9)
    rewards_PN = torch.tensor([[float(r) for r in rewards]], dtype=torch.float64)
    log_ratios_PN = torch.tensor([[float(rho) for rho in ratios]], dtype=torch.float64).log()
    credits_N = SetAdvantage(k, 0.0)(rewards_PN, log_ratios_PN)[0]
    exact = [exact_set_advantage(rewards, ratios, k, i) for i in chosen]
    assert relative_error(credits_N[chosen], exact) < 1e-10


def test_normaliser_against_rational_arithmetic() -> None:
    _, ratios = random_group(40, seed=5)
    log_ratios_PN = torch.tensor([[float(rho) for rho in ratios]], dtype=torch.float64).log()
    log_normaliser = group_diagnostics(torch.zeros(1, 40), log_ratios_PN, k=16).log_normaliser_P.item()
    exact = symmetric_polynomials(ratios, 16)[16] / comb(40, 16)
    assert abs(log_normaliser - torch.tensor(float(exact), dtype=torch.float64).log().item()) < 1e-12


@pytest.mark.parametrize("k", [1, 512, 1024, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 1023))])
def test_a_thousand_samples_without_overflow_or_silent_zeros(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    rewards_PN = torch.rand(2, 1024, dtype=torch.float64, generator=generator)
    log_ratios_PN = torch.log(torch.tensor(10.0)) * (4 * torch.rand(2, 1024, generator=generator) - 2)
    objectives: list[Objective] = [
        MaxAtK(k, "none"),
        ExactMaxAtK(k, "none", ratio_clip=None),
        OffPolicyMaxAtK(k, clamp=None),
    ]
    if k > 1:
        objectives += [
            MaxAtK(k, "loo1"),
            ExactMaxAtK(k, "loo1", ratio_clip=None),
            OffPolicyMaxAtK(k, "loo1", clamp=None),
        ]
    if k < 1024:
        objectives += [
            SetAdvantage(k),
            SetAdvantage(k, 0.0),
            MaxAtK(k),
            ExactMaxAtK(k, ratio_clip=None),
            ExactMaxAtK(k, self_normalise=True, ratio_clip=None),
        ]
    for objective in objectives:
        credits_PN = objective(rewards_PN, log_ratios_PN)
        assert credits_PN.isfinite().all(), objective
        assert credits_PN.any(dim=-1).all(), objective


def test_large_on_policy_groups_agree_between_the_closed_form_and_the_recursion() -> None:
    rewards_PN = torch.rand(3, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for baseline in ("centred", "loo1", "none"):
        closed_PN = MaxAtK(512, baseline)(rewards_PN, torch.zeros_like(rewards_PN))  # type: ignore[arg-type]
        recursion_PN = ExactMaxAtK(512, baseline, ratio_clip=None)(rewards_PN, torch.zeros_like(rewards_PN))  # type: ignore[arg-type]
        scale = closed_PN.abs().max().item()
        torch.testing.assert_close(recursion_PN, closed_PN, rtol=0.0, atol=1e-11 * scale)


def test_extreme_log_ratios_are_clamped_and_stay_finite() -> None:
    rewards_PN = torch.tensor([[0.0, 1.0, 0.5, nan], [1.0, 1.0, 0.0, 0.0]])
    log_ratios_PN = torch.tensor([[1e4, -1e4, 0.0, nan], [-torch.inf, torch.inf, 300.0, -300.0]])
    objectives = [
        ExactMaxAtK(2, ratio_clip=None),
        ExactMaxAtK(2, "loo1", ratio_clip=None),
        ExactMaxAtK(3, "none", ratio_clip=None),
        OffPolicyMaxAtK(2, clamp=None),
        SetAdvantage(2),
    ]
    for objective in objectives:
        credits_PN = objective(rewards_PN, log_ratios_PN)
        assert credits_PN.isfinite().all()
        torch.testing.assert_close(credits_PN, objective(rewards_PN, log_ratios_PN.clamp(-20, 20)))
    assert (
        (ExactMaxAtK(16, "none", ratio_clip=None)(torch.ones(1, 32), torch.full((1, 32), 19.0)))
        .float()
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("baseline", ["centred", "loo1"])
def test_pieces_of_many_prompts_equal_the_whole(baseline: str) -> None:
    num_prompts, n, k = 5300, 64, 32
    assert num_prompts * (n + 1) * (k + 1) * 24 > TABLE_BYTES, "too few prompts for two pieces"
    rewards_PN = torch.rand(num_prompts, n, generator=torch.Generator().manual_seed(1))
    log_ratios_PN = 0.1 * torch.randn(num_prompts, n, generator=torch.Generator().manual_seed(2))
    objective = ExactMaxAtK(k, baseline, ratio_clip=None)  # type: ignore[arg-type]
    whole_PN = objective(rewards_PN, log_ratios_PN)
    assert whole_PN.shape == rewards_PN.shape
    for start in (0, num_prompts - 1):
        alone_PN = objective(rewards_PN[start : start + 1], log_ratios_PN[start : start + 1])
        torch.testing.assert_close(whole_PN[start : start + 1], alone_PN, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("baseline", ["centred", "loo1", "none"])
def test_one_dominating_ratio_against_rational_arithmetic(baseline: str) -> None:
    # 1 - p of the dominating sample is 1e-8: computed as a difference it would have half its digits
    rewards = [Fraction(r) for r in (0.25, 0.5, 1.0, 0.0, 0.75, 0.5)]
    ratios = [Fraction(1), Fraction(2**26), Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(1, 2**20)]
    log_ratios_PN = torch.tensor([[float(rho) for rho in ratios]], dtype=torch.float64).log()
    rewards_PN = torch.tensor([[float(r) for r in rewards]], dtype=torch.float64)
    credits_PN = ExactMaxAtK(3, baseline, ratio_clip=None)(rewards_PN, log_ratios_PN)  # type: ignore[arg-type]
    exact = exact_credits(rewards, ratios, 3, baseline)
    for credit, expected in zip(credits_PN[0].tolist(), exact, strict=True):
        assert abs(Fraction(credit) - expected) <= TOLERANCE * abs(expected)


def test_a_runaway_ratio_among_a_thousand_leaves_a_uniform_law_of_the_others() -> None:
    n, k = 1024, 512
    log_ratios_PN = torch.zeros(1, n, dtype=torch.float64)
    log_ratios_PN[0, 7] = 20.0
    law = subset_law(torch.linspace(0.0, 1.0, n).double().unsqueeze(0), log_ratios_PN, torch.tensor([float(n)]), k)
    others_N = law.inclusion_PN[0][torch.arange(n) != 7]
    torch.testing.assert_close(others_N, torch.full_like(others_N, (k - 1) / (n - 1)), rtol=1e-8, atol=0.0)
    assert law.inclusion_PN.sum().item() == pytest.approx(k, rel=1e-12)
    assert law.exclusion_PN[0, 7].item() == pytest.approx(
        torch.tensor(-20.0).double().exp().item() * (n - k) / k, rel=1e-8
    )
