"""Every objective against its definition: brute force over all subsets, or the published formula sample by sample."""

from collections.abc import Callable
from itertools import combinations, product
from math import comb, exp, inf, log, nan, prod
from statistics import fmean, pstdev, stdev
from typing import Literal

import pytest
import torch
from scipy.optimize import brentq

from maxk_lightning.estimators import max_at_k
from maxk_lightning.objectives import (
    GRPO,
    NSR,
    RLOO,
    RSGRPO,
    BonMaxMean,
    BonMaxSecond,
    CVaR,
    DistinctMaxAtK,
    DrGRPO,
    Entropic,
    ExactMaxAtK,
    ExactRatios,
    MaxAtK,
    MaxRL,
    Objective,
    OffPolicyMaxAtK,
    PassKTraining,
    PlugInMaxAtK,
    RankWeighted,
    SetAdvantage,
    SubsetQuantile,
    TemperedRatios,
    TopMMean,
    UniquenessWeighted,
    WReinforce,
    group_diagnostics,
)
from maxk_lightning.objectives.group import sort_groups
from tests.support.behaving import ByReward

# ties, negative rewards, unsorted; ratios on both sides of 1
GROUPS = [
    ([0.2, -1.5], [0.5, 2.0]),
    ([0.4, 0.4, 0.4, 0.4], [0.5, 2.0, 1.0, 1.5]),
    ([1.0, 0.0, 1.0, 0.0, 0.0], [0.2, 5.0, 1.0, 0.7, 3.0]),
    ([-3.0, 2.0, -0.5, 0.25, 3.0, 2.0], [1.3, 0.6, 1.0, 0.8, 1.7, 1.1]),
    ([0.5, 0.0, 0.5, 1.0, 0.25, 0.25, 0.0, 0.75, -0.1], [1.05, 0.98, 1.0, 0.9, 1.2, 0.85, 1.1, 0.97, 4.0]),
]
GROUPS_AND_KS = [(rewards, ratios, k) for rewards, ratios in GROUPS for k in range(1, len(rewards) + 1)]
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64 against float64 sums over at most 126 subsets


def credits_of(objective: Objective, rewards: list[float], ratios: list[float] | None = None) -> torch.Tensor:
    rewards_PN = torch.tensor([rewards], dtype=torch.float64)
    log_ratios_PN = (
        torch.zeros_like(rewards_PN) if ratios is None else torch.tensor([ratios], dtype=torch.float64).log()
    )
    credits_PN = objective(rewards_PN, log_ratios_PN)
    assert credits_PN.dtype == torch.float64
    assert not credits_PN.requires_grad
    return credits_PN[0]


def assert_credits(actual_N: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual_N, torch.tensor(expected, dtype=torch.float64), **EXACT)


def weighted_subsets(rewards: list[float], ratios: list[float], k: int) -> list[tuple[tuple[int, ...], float, float]]:
    """(members, product of ratios, maximum) of every k-subset."""
    return [
        (subset, prod(ratios[i] for i in subset), max(rewards[i] for i in subset))
        for subset in combinations(range(len(rewards)), k)
    ]


def brute_plain(rewards: list[float], ratios: list[float], k: int) -> list[float]:
    subsets = weighted_subsets(rewards, ratios, k)
    return [sum(w * best for members, w, best in subsets if i in members) / len(subsets) for i in range(len(rewards))]


def brute_loo1(rewards: list[float], ratios: list[float], k: int) -> list[float]:
    subsets = weighted_subsets(rewards, ratios, k)
    return [
        sum(w * (best - max(rewards[j] for j in members if j != i)) for members, w, best in subsets if i in members)
        / len(subsets)
        for i in range(len(rewards))
    ]


def brute_centred(rewards: list[float], ratios: list[float], k: int) -> list[float]:
    """E pi_i (E[max | i in I] - E[max | i not in I])."""
    subsets = weighted_subsets(rewards, ratios, k)
    credits = []
    for i in range(len(rewards)):
        weight_in = sum(w for members, w, _ in subsets if i in members)
        value_in = sum(w * best for members, w, best in subsets if i in members)
        weight_out = sum(w for members, w, _ in subsets if i not in members)
        value_out = sum(w * best for members, w, best in subsets if i not in members)
        credits.append(weight_in / len(subsets) * (value_in / weight_in - value_out / weight_out))
    return credits


def effective_fraction(ratios: list[float], k: int) -> float:
    """(sum W)^2 / sum W^2 over the number of k-subsets."""
    weights = [w for _, w, _ in weighted_subsets(ratios, ratios, k)]
    return sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)


def brute_alpha(ratios: list[float], k: int, least: float) -> float:
    """Largest multiple of 2^-8 in [0, 1] that leaves this effective fraction, tried one after the other."""
    steps = 2**8
    return max(
        (a / steps for a in range(steps + 1) if effective_fraction([r ** (a / steps) for r in ratios], k) >= least),
        default=0.0,
    )


def brute_first_order(rewards: list[float], deltas: list[float], k: int, baseline: str) -> list[float]:
    n = len(rewards)
    credits = []
    for i in range(n):
        total = 0.0
        for subset in combinations(range(n), k):
            if i in subset:
                others = max((rewards[j] for j in subset if j != i), default=0.0) if baseline == "loo1" else 0.0
                total += (1 + sum(deltas[j] for j in subset)) * (max(rewards[j] for j in subset) - others)
        credits.append(total / comb(n, k))
    return credits


@pytest.mark.parametrize(("rewards", "ratios", "k"), GROUPS_AND_KS)
def test_on_policy_credits_are_the_sums_over_subsets(rewards: list[float], ratios: list[float], k: int) -> None:
    ones = [1.0] * len(rewards)
    assert_credits(credits_of(MaxAtK(k, "none"), rewards, ratios), brute_plain(rewards, ones, k))
    if k > 1:
        assert_credits(credits_of(MaxAtK(k, "loo1"), rewards, ratios), brute_loo1(rewards, ones, k))
    if k < len(rewards):
        assert_credits(credits_of(MaxAtK(k), rewards, ratios), brute_centred(rewards, ones, k))


@pytest.mark.parametrize(("rewards", "ratios", "k"), GROUPS_AND_KS)
def test_exact_credits_are_the_weighted_sums_over_subsets(rewards: list[float], ratios: list[float], k: int) -> None:
    normaliser = sum(w for _, w, _ in weighted_subsets(rewards, ratios, k)) / comb(len(rewards), k)
    for baseline, brute in (("none", brute_plain), ("loo1", brute_loo1), ("centred", brute_centred)):
        if (baseline == "loo1" and k == 1) or (baseline == "centred" and k == len(rewards)):
            continue
        expected = brute(rewards, ratios, k)
        assert_credits(credits_of(ExactMaxAtK(k, baseline, ratio_clip=None), rewards, ratios), expected)  # type: ignore[arg-type]
        if k < len(rewards):
            self_normalised = ExactMaxAtK(k, baseline, self_normalise=True, ratio_clip=None)  # type: ignore[arg-type]
            assert_credits(credits_of(self_normalised, rewards, ratios), [c / normaliser for c in expected])


@pytest.mark.parametrize(("rewards", "ratios", "k"), GROUPS_AND_KS)
@pytest.mark.parametrize("clamp", [None, 0.2])
def test_first_order_credits_are_the_truncated_sums_over_subsets(
    rewards: list[float], ratios: list[float], k: int, clamp: float | None
) -> None:
    bound = clamp or 1e9
    deltas = [min(max(rho - 1, -bound), bound) for rho in ratios]
    plain = brute_first_order(rewards, deltas, k, "none")
    assert_credits(credits_of(OffPolicyMaxAtK(k, clamp=clamp), rewards, ratios), plain)
    if k > 1:
        loo1 = brute_first_order(rewards, deltas, k, "loo1")
        assert_credits(credits_of(OffPolicyMaxAtK(k, "loo1", clamp), rewards, ratios), loo1)
    if k < len(rewards):
        centred = [c - fmean(plain) for c in plain]
        assert_credits(credits_of(OffPolicyMaxAtK(k, "mean", clamp), rewards, ratios), centred)
        z_scores = [c / stdev(plain) / len(plain) for c in centred]
        assert_credits(credits_of(OffPolicyMaxAtK(k, "zscore", clamp), rewards, ratios), z_scores)


@pytest.mark.parametrize(("rewards", "ratios", "k"), [group for group in GROUPS_AND_KS if group[2] < len(group[0])])
@pytest.mark.parametrize("alpha", [1.0, None])
def test_set_advantages_are_the_exact_credits_without_the_inclusion_probability(
    rewards: list[float], ratios: list[float], k: int, alpha: float | None
) -> None:
    n = len(rewards)
    objective = SetAdvantage(k, 0.0 if alpha else 0.7)
    rewards_PN = torch.tensor([rewards], dtype=torch.float64)
    log_ratios_PN = torch.tensor([ratios], dtype=torch.float64).log()
    alpha = alpha or objective.tempering(rewards_PN, log_ratios_PN).item()
    ratios = [rho**alpha for rho in ratios]
    weights = weighted_subsets(rewards, ratios, k)
    included = [sum(w for members, w, _ in weights if i in members) / len(weights) for i in range(n)]
    expected = [k / n * c / p for c, p in zip(brute_centred(rewards, ratios, k), included, strict=True)]
    assert_credits(objective(rewards_PN, log_ratios_PN)[0], expected)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("least", [0.5, 0.7, 0.95, 1.0])
def test_tempering_is_the_largest_exponent_that_leaves_enough_subsets(k: int, least: float) -> None:
    ratios = [1.3, 0.02, 1.0, 0.3, 9.0]
    log_ratios_PN = torch.tensor([[*ratios, 1.0]], dtype=torch.float64).log()
    rewards_PN = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.5, nan]])
    alpha = SetAdvantage(k, least).tempering(rewards_PN, log_ratios_PN).item()
    assert alpha == brute_alpha(ratios, k, least)
    assert alpha < 1.0


def test_tempering_of_ratios_that_are_near_enough_is_one_and_of_small_groups_nan() -> None:
    rewards_PN = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.0, 0.5], [1.0, 0.0, nan]])
    log_ratios_PN = torch.tensor([[0.2, 0.0, -0.2], [3.0, 3.0, 3.0], [0.0, 9.0, 0.0]])
    assert SetAdvantage(2).tempering(rewards_PN, log_ratios_PN)[:2].tolist() == [1.0, 1.0]
    assert SetAdvantage(2).tempering(rewards_PN, log_ratios_PN)[2].isnan()
    assert SetAdvantage(2, 1.0).tempering(rewards_PN, log_ratios_PN)[:2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("rewards", "ratios", "k"), GROUPS_AND_KS)
def test_ratios_of_one_give_the_on_policy_form(rewards: list[float], ratios: list[float], k: int) -> None:
    pairs = [
        (ExactMaxAtK(k, "none", ratio_clip=None), MaxAtK(k, "none")),
        (OffPolicyMaxAtK(k, clamp=None), MaxAtK(k, "none")),
    ]
    if k > 1:
        pairs += [
            (ExactMaxAtK(k, "loo1", ratio_clip=None), MaxAtK(k, "loo1")),
            (OffPolicyMaxAtK(k, "loo1", clamp=None), MaxAtK(k, "loo1")),
        ]
    if k < len(rewards):
        pairs += [
            (ExactMaxAtK(k, ratio_clip=None), MaxAtK(k)),
            (ExactMaxAtK(k, self_normalise=True, ratio_clip=None), MaxAtK(k)),
        ]
        pairs += [(OffPolicyMaxAtK(k, "zscore", clamp=None), MaxAtK(k, "zscore"))]
        pairs += [(SetAdvantage(k), MaxAtK(k)), (SetAdvantage(k, 0.0), MaxAtK(k))]
        all_tempered = credits_of(SetAdvantage(k, 1.0), rewards, ratios)
        torch.testing.assert_close(all_tempered, credits_of(MaxAtK(k), rewards), **EXACT)
    for off_policy, on_policy in pairs:
        torch.testing.assert_close(credits_of(off_policy, rewards), credits_of(on_policy, rewards), **EXACT)


@pytest.mark.parametrize(("rewards", "ratios", "k"), [group for group in GROUPS_AND_KS if group[2] < len(group[0])])
def test_z_scored_and_pass_k_training_rescale_the_centred_credits(
    rewards: list[float], ratios: list[float], k: int
) -> None:
    n = len(rewards)
    plain = brute_plain(rewards, [1.0] * n, k)
    spread = stdev(plain) if stdev(plain) > 1e-12 else 1.0
    assert_credits(credits_of(MaxAtK(k, "zscore"), rewards), [(c - fmean(plain)) / spread / n for c in plain])
    maxima = [max(subset) for subset in combinations(rewards, k)]
    spread = pstdev(maxima) or 1.0
    advantages = [(c * n / k - fmean(maxima)) / spread for c in plain]  # c n / k is the mean of max where i is in
    assert_credits(credits_of(PassKTraining(k), rewards), [a / n for a in advantages])


@pytest.mark.parametrize("rewards", [rewards for rewards, _ in GROUPS])
def test_relative_advantages_are_their_published_formulas_over_n(rewards: list[float]) -> None:
    n, mean, best = len(rewards), fmean(rewards), max(rewards)
    spread = stdev(rewards) if len(set(rewards)) > 1 else 1.0
    second = max((r for r in rewards if r < best), default=best)
    risk = [exp(2.0 * r) for r in rewards]
    published: list[tuple[Objective, list[float]]] = [
        (GRPO(), [(r - mean) / spread for r in rewards]),
        (GRPO(scale_by_std=False), [r - mean for r in rewards]),
        (DrGRPO(), [r - mean for r in rewards]),
        (RLOO(), [r - fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]),
        (BonMaxMean(), [r - mean if r == best else 0.0 for r in rewards]),
        (BonMaxSecond(), [r - second if r == best else 0.0 for r in rewards]),
        (RSGRPO(beta=2.0), [(e / fmean(risk) - 1) / 2.0 for e in risk]),
    ]
    for objective, advantages in published:
        assert_credits(credits_of(objective, rewards), [a / n for a in advantages])


def test_max_rl_is_its_published_formula_over_n() -> None:
    assert_credits(credits_of(MaxRL(), [1.0, 0.0, 0.0, 1.0, 0.0]), [a / 5 for a in (1.5, -1.0, -1.0, 1.5, -1.0)])
    assert_credits(credits_of(MaxRL(), [0.0, 0.0]), [0.0, 0.0])
    assert_credits(credits_of(MaxRL(), [1.0, 1.0]), [0.0, 0.0])


@pytest.mark.parametrize(
    ("rewards", "threshold", "is_correct"),
    [
        ([1.0, 0.0, 0.99, 1.0], 1.0, [True, False, False, True]),
        ([0.5, 0.49, -1.0], 0.5, [True, False, False]),
        ([0.0, 0.0, 0.0], 1.0, [False] * 3),
        ([1.0, 1.0], 1.0, [True] * 2),
        ([1.0], 1.0, [True]),
        ([0.0], 1.0, [False]),
    ],
)
def test_negative_reinforcement_gives_every_sample_the_weight_of_its_sign(
    rewards: list[float], threshold: float, is_correct: list[bool]
) -> None:
    n = len(rewards)
    assert_credits(credits_of(NSR(threshold), rewards), [0.0 if right else -1 / n for right in is_correct])
    weighted = [0.25 / n if right else -1 / n for right in is_correct]
    assert_credits(credits_of(WReinforce(0.25, threshold), rewards), weighted)
    assert_credits(credits_of(WReinforce(0.0, threshold), rewards), credits_of(NSR(threshold), rewards).tolist())


def brute_entropic(rewards: list[float], kl: float) -> list[float]:
    """Advantages with beta by a root finder, sample by sample."""
    n, best = len(rewards), max(rewards)

    def excess(beta: float) -> float:
        weights = [exp(beta * (r - best)) for r in rewards]
        q = [w / sum(weights) for w in weights]
        return sum(p * log(n * p) for p in q if p > 0.0) - kl

    beta = brentq(excess, 0.0, 1e3, xtol=1e-14, rtol=1e-14)
    weights = [exp(beta * (r - best)) for r in rewards]
    return [w / fmean(weights[:i] + weights[i + 1 :]) - 1 for i, w in enumerate(weights)]


@pytest.mark.parametrize("rewards", [rewards for rewards, _ in GROUPS if len(set(rewards)) > 1])
@pytest.mark.parametrize("kl", [0.01, 0.3, log(2), 0.9])
def test_entropic_advantages_are_their_definition_over_n(rewards: list[float], kl: float) -> None:
    n, num_best = len(rewards), rewards.count(max(rewards))
    if log(n / num_best) <= kl:
        pytest.skip("no beta reaches this KL, see the next tests")
    assert_credits(credits_of(Entropic(kl), rewards), [a / n for a in brute_entropic(rewards, kl)])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_entropic_credits_have_a_closed_form_where_too_many_are_tied_for_any_beta(scale: float) -> None:
    # 3 of 5 are the best: KL(q || uniform) stays below log(5/3) < ln 2, so q is all on these
    rewards = [2.0 * scale, -scale, 2.0 * scale, 0.0, 2.0 * scale]
    best = (5 - 3) / (3 - 1) / 5
    assert_credits(credits_of(Entropic(), rewards), [best, -0.2, best, -0.2, best])


@pytest.mark.parametrize("n", [4, 6, 8, 10, 64])
def test_entropic_credits_of_a_group_half_of_which_is_tied_for_the_best(n: int) -> None:
    # log(n / m) is ln 2 itself: all of q is on the best, up to the rounding of the KL
    best = (n - 1) / (n / 2 - 1) - 1
    expected = [(best if i % 2 else -1.0) / n for i in range(n)]
    assert_credits(credits_of(Entropic(), [float(i % 2) for i in range(n)]), expected)


def test_entropic_rewards_nearer_than_rounding_count_as_tied() -> None:
    nearly = [0.1 + 0.2, 0.3, 0.0]  # apart by 6e-17: any credit that tells them apart is noise
    torch.testing.assert_close(credits_of(Entropic(), nearly), credits_of(Entropic(), [0.3, 0.3, 0.0]), **EXACT)
    assert (credits_of(Entropic(), [0.1 + 0.2, 0.3, 0.3]) == 0).all()


def test_entropic_advantages_solve_hand_worked_numbers() -> None:
    # one success among n: q of it solves q ln(n q) + (1 - q) ln(n (1 - q) / (n - 1)) = ln 2
    for n in (3, 8, 1024):
        q = brentq(lambda q, n=n: q * log(n * q) + (1 - q) * log(n * (1 - q) / (n - 1)) - log(2), 1 / n, 1 - 1e-15)
        others = (1 - q) / (n - 1)
        wrong = others / ((q + (n - 2) * others) / (n - 1)) - 1
        expected = [(q / others - 1) / n] + [wrong / n] * (n - 1)
        assert_credits(credits_of(Entropic(), [1.0] + [0.0] * (n - 1)), expected)


def test_entropic_groups_that_shrank_until_no_beta_is_finite_get_zeros() -> None:
    rewards_PN = torch.tensor([[1.0, 0.0, nan, nan], [1.0, 0.0, 0.0, nan]])
    credits_PN = Entropic()(rewards_PN, torch.zeros_like(rewards_PN))
    assert (credits_PN[0] == 0).all()
    assert credits_PN[1].any()


def brute_plug_in(rewards: list[float], k: int) -> list[float]:
    """Cov(how often i is drawn, the best draw) over all n^k tuples."""
    n = len(rewards)
    draws = list(product(range(n), repeat=k))
    mean = fmean(max(rewards[i] for i in draw) for draw in draws)
    return [fmean(draw.count(i) * max(rewards[j] for j in draw) for draw in draws) - k / n * mean for i in range(n)]


def brute_urn(rewards: list[float], k: int) -> list[float]:
    """(k/n) (E[max(r_i, best of k - 1 draws)] - mean) over all draws from an urn that gets a copy of each."""
    n = len(rewards)
    values = [0.0] * n
    for draw in product(range(n), repeat=k - 1):
        probability = prod((1 + draw[:m].count(i)) / (n + m) for m, i in enumerate(draw))
        best = max((rewards[i] for i in draw), default=-inf)
        values = [value + probability * max(r, best) for value, r in zip(values, rewards, strict=True)]
    return [k / n * (value - fmean(values)) for value in values]


@pytest.mark.parametrize("rewards", [[0.2, -1.5], [0.4] * 4, [1.0, 0.0, 1.0, 0.0], [-3.0, 2.0, 0.25, 2.0]])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
@pytest.mark.parametrize(("draws", "brute"), [("replacement", brute_plug_in), ("urn", brute_urn)])
def test_plug_in_credits_are_their_means_over_all_draws_from_the_group(
    rewards: list[float], k: int, draws: Literal["replacement", "urn"], brute: Callable[[list[float], int], list[float]]
) -> None:
    expected = brute(rewards, k)
    assert_credits(credits_of(PlugInMaxAtK(k, draws), rewards), expected)
    with_missing = credits_of(PlugInMaxAtK(k, draws), [nan, *rewards, nan])
    assert_credits(with_missing, [0.0, *expected, 0.0])


def test_draws_from_the_urn_are_draws_from_the_policies_of_the_bayesian_bootstrap() -> None:
    # weights of the samples: Dirichlet(1, ..., 1); mean of the derivative by them, 200000 policies
    rewards_N, k, num_policies = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64), 6.5, 200_000
    exponential_RN = -torch.rand(num_policies, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()
    at_most_RN = (exponential_RN / exponential_RN.sum(1, keepdim=True)).cumsum(1)[:, :-1]
    losses_N = (rewards_N.diff() * k * (at_most_RN ** (k - 1)).mean(0)).flip(0).cumsum(0).flip(0)
    slopes_N = torch.cat([-losses_N, torch.zeros(1, dtype=torch.float64)])
    expected_N = (slopes_N - slopes_N.mean()) / 4
    credits_N = credits_of(PlugInMaxAtK(k, "urn"), rewards_N.tolist())
    torch.testing.assert_close(credits_N, expected_N, rtol=0.0, atol=0.0025)  # five standard errors of the largest


@pytest.mark.parametrize("k", [1.0, 1.5, 7.25, 128.0])
def test_plug_in_credits_are_the_derivative_of_the_estimate_by_the_weights(k: float) -> None:
    rewards = sorted(GROUPS[-1][0])
    n = len(rewards)
    weights_N = torch.full((n,), 1 / n, dtype=torch.float64, requires_grad=True)
    laws_N = torch.cat([torch.zeros(1, dtype=torch.float64), weights_N.cumsum(0) ** k])
    (slopes_N,) = torch.autograd.grad((laws_N.diff() * torch.tensor(rewards, dtype=torch.float64)).sum(), weights_N)
    # distinct rewards only: among tied ones autograd takes the order for a fact
    distinct = [i for i, r in enumerate(rewards) if rewards.count(r) == 1]
    credits_N = credits_of(PlugInMaxAtK(k), rewards)
    differences = credits_N[distinct].diff()
    torch.testing.assert_close(differences, slopes_N[distinct].diff() / n, **EXACT)
    assert abs(credits_N.sum().item()) < 1e-12


@pytest.mark.parametrize("draws", ["replacement", "urn"])
def test_plug_in_credits_reach_the_unbiased_ones_as_one_over_n(draws: Literal["replacement", "urn"]) -> None:
    def error(n: int) -> float:
        rewards_PN = torch.linspace(0.0, 1.0, n, dtype=torch.float64).unsqueeze(0)
        plug_in_PN = PlugInMaxAtK(4, draws)(rewards_PN, torch.zeros_like(rewards_PN))
        return float(n * (plug_in_PN - MaxAtK(4)(rewards_PN, torch.zeros_like(rewards_PN))).abs().max())

    assert error(40) > 0.02
    assert error(40) / error(4000) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("draws", ["replacement", "urn"])
def test_plug_in_at_k_one_is_dr_grpo(draws: Literal["replacement", "urn"]) -> None:
    rewards = GROUPS[-1][0]
    assert_credits(credits_of(PlugInMaxAtK(1, draws), rewards), credits_of(DrGRPO(), rewards).tolist())


def test_plug_in_credits_survive_a_k_and_a_group_of_any_size() -> None:
    rewards_PN = torch.tensor([[1.0, 0.0] + [nan] * 1022, [0.0] * 1023 + [1.0], [1.0] + [nan] * 1023])
    share = 1e3 * 1023 / 1024**2
    at_most = {"replacement": (1023 / 1024) ** 999, "urn": 1023 / (1023 + 999)}
    for draws in ("replacement", "urn"):
        credits_PN = PlugInMaxAtK(1e3, draws)(rewards_PN, torch.zeros_like(rewards_PN))  # type: ignore[arg-type]
        assert credits_PN.isfinite().all()
        assert credits_PN[1, -1].item() == pytest.approx(share * at_most[draws], rel=1e-10)
        assert (credits_PN[2] == 0).all()


def test_bon_max_second_is_loo1_at_k_n_over_n_without_ties() -> None:
    rewards = [0.3, -1.0, 0.9, 0.5]
    torch.testing.assert_close(credits_of(BonMaxSecond(), rewards), credits_of(MaxAtK(4, "loo1"), rewards) / 4)


def test_max_at_1_with_the_centred_baseline_is_rloo() -> None:
    rewards = [0.3, -1.0, 0.9, 0.5]
    torch.testing.assert_close(credits_of(MaxAtK(1), rewards), credits_of(RLOO(), rewards), **EXACT)
    assert_credits(credits_of(MaxAtK(1, "none"), rewards), [r / 4 for r in rewards])


def test_plain_credits_sum_to_k_times_the_estimate() -> None:
    rewards_PN = torch.tensor([[0.5, 0.0, 0.5, 1.0, 0.25]])
    for k in range(1, 6):
        total_P = MaxAtK(k, "none")(rewards_PN, torch.zeros_like(rewards_PN)).sum(-1)
        torch.testing.assert_close(total_P, k * max_at_k(rewards_PN, [k])[:, 0])


def test_ratio_clip_is_the_exact_form_at_clipped_ratios() -> None:
    rewards, ratios = [0.1, 0.9, 0.4, 0.4], [9.0, 0.01, 1.2, 1.0]
    clipped = credits_of(ExactMaxAtK(2, ratio_clip=2.0), rewards, ratios)
    torch.testing.assert_close(
        clipped, credits_of(ExactMaxAtK(2, ratio_clip=None), rewards, [2.0, 0.5, 1.2, 1.0]), **EXACT
    )


EVERY_OBJECTIVE: list[Objective] = [
    GRPO(),
    DrGRPO(),
    RLOO(),
    BonMaxMean(),
    BonMaxSecond(),
    MaxRL(),
    RSGRPO(),
    NSR(),
    WReinforce(),
    Entropic(0.2),
    PlugInMaxAtK(2),
    PlugInMaxAtK(9.5),
    PlugInMaxAtK(9.5, "urn"),
    PassKTraining(2),
    *(MaxAtK(2, baseline) for baseline in ("centred", "loo1", "zscore", "none")),
    *(OffPolicyMaxAtK(2, baseline, clamp=None) for baseline in ("none", "loo1", "mean", "zscore")),
    *(ExactMaxAtK(2, baseline, ratio_clip=None) for baseline in ("centred", "loo1", "none")),
    ExactMaxAtK(2, self_normalise=True, ratio_clip=3.0),
    ExactMaxAtK(2),
    OffPolicyMaxAtK(2, "loo1"),
    SetAdvantage(2),
    SetAdvantage(2, min_effective_fraction=0.0),
    RankWeighted(2, [-0.5, 1.0]),
    TopMMean(2, 2),
    SubsetQuantile(2, 0.5),
    CVaR(2, 0.75, "lower"),
    ExactRatios(TopMMean(2, 2)),
    TemperedRatios(TopMMean(2, 2)),
    ByReward(DistinctMaxAtK(2)),
    ByReward(ExactRatios(DistinctMaxAtK(2, correct_at=0.0))),
    ByReward(TemperedRatios(DistinctMaxAtK(2, correct_at=0.0))),
    ByReward(UniquenessWeighted()),
]


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE, ids=repr)
def test_missing_samples_get_zero_and_leave_the_others_as_in_a_smaller_group(objective: Objective) -> None:
    rewards_PN = torch.tensor([[nan, 1.0, 0.0, nan, 0.0, 1.0], [1.0, nan, nan, 1.0, 0.0, 0.0]])
    log_ratios_PN = torch.tensor([[nan, 0.3, -0.2, 9.0, 0.0, 0.1], [0.4, nan, 1.0, -0.5, 0.2, 0.0]])
    credits_PN = objective(rewards_PN, log_ratios_PN)
    is_present_PN = ~rewards_PN.isnan()
    assert (credits_PN[~is_present_PN] == 0).all()
    smaller_PN = objective(rewards_PN[is_present_PN].view(2, 4), log_ratios_PN[is_present_PN].view(2, 4))
    torch.testing.assert_close(credits_PN[is_present_PN].view(2, 4), smaller_PN, **EXACT)


@pytest.mark.parametrize("objective", [o for o in EVERY_OBJECTIVE if not isinstance(o, WReinforce)], ids=repr)
def test_groups_that_lost_too_many_samples_get_zeros_beside_whole_ones(objective: Objective) -> None:
    rewards_PN = torch.tensor([[nan, nan, nan, nan], [nan, nan, 1.0, nan], [1.0, 0.0, 1.0, 0.0]])
    credits_PN = objective(rewards_PN, torch.full_like(rewards_PN, 0.1))
    assert (credits_PN[:2] == 0).all()
    assert credits_PN[2].isfinite().all()
    assert credits_PN[2].any()


@pytest.mark.parametrize(
    "objective",
    [
        MaxAtK(2),
        MaxAtK(2, "zscore"),
        PassKTraining(2),
        OffPolicyMaxAtK(2, "mean", clamp=None),
        OffPolicyMaxAtK(2, "zscore", clamp=None),
        ExactMaxAtK(2, ratio_clip=None),
        ExactMaxAtK(2, "none", self_normalise=True, ratio_clip=None),
        SetAdvantage(2),
        TopMMean(2, 2),
        ExactRatios(TopMMean(2, 2)),
        TemperedRatios(TopMMean(2, 2)),
        ByReward(DistinctMaxAtK(2, correct_at=0.0)),
    ],
    ids=repr,
)
def test_a_group_that_shrank_to_k_gets_zeros_where_a_baseline_needs_more(objective: Objective) -> None:
    rewards_PN = torch.tensor([[1.0, 0.0, nan]])
    assert (objective(rewards_PN, torch.tensor([[0.5, -0.5, 0.0]])) == 0).all()


@pytest.mark.parametrize(
    "objective",
    [
        o
        for o in EVERY_OBJECTIVE
        if not isinstance(o, OffPolicyMaxAtK | MaxRL | NSR | WReinforce) and getattr(o, "baseline", "") != "none"
    ]
    + [OffPolicyMaxAtK(2, "loo1", clamp=None)],
    ids=repr,
)
def test_equal_rewards_teach_nothing_whatever_the_ratios(objective: Objective) -> None:
    for n in (3, 5, 6, 7, 10):  # the mean of n times 0.1 rounds away from 0.1 for some
        rewards_PN = torch.full((1, n), 0.1, dtype=torch.float64)
        assert (objective(rewards_PN, torch.linspace(-1.0, 2.0, n).unsqueeze(0)) == 0).all()


def test_sorted_groups_have_their_gaps_inside_the_group_only() -> None:
    groups = sort_groups(torch.tensor([[nan, 3.0, -1.0, 2.0, nan], [5.0, nan, nan, nan, nan], [nan] * 5]))
    assert groups.gaps_PN.tolist() == [[3.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5, [0.0] * 5]
    assert groups.best_P1.tolist() == [[3.0], [5.0], [0.0]]
    assert groups.num_samples_P.tolist() == [3.0, 1.0, 0.0]


def test_one_sample_and_k_one() -> None:
    one = torch.tensor([[0.7]], dtype=torch.float64)
    ratio = torch.tensor([[2.0]], dtype=torch.float64)
    assert MaxAtK(1, "none")(one, ratio.log()).item() == pytest.approx(0.7)
    assert ExactMaxAtK(1, "none", ratio_clip=None)(one, ratio.log()).item() == pytest.approx(1.4)
    assert OffPolicyMaxAtK(1, clamp=None)(one, ratio.log()).item() == pytest.approx(1.4)


def test_half_precision_input_is_computed_in_float64() -> None:
    rewards_PN = torch.tensor([[0.5, 0.25, 1.0]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        credits_PN = ExactMaxAtK(2, ratio_clip=None)(rewards_PN.to(dtype), torch.zeros(1, 3, dtype=dtype))
        torch.testing.assert_close(
            credits_PN, ExactMaxAtK(2, ratio_clip=None)(rewards_PN.double(), torch.zeros(1, 3).double())
        )


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE, ids=repr)
def test_autocast_and_gradients_of_the_inputs_change_nothing(objective: Objective) -> None:
    rewards_PN = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    log_ratios_PN = torch.tensor([[0.3, -0.2, 0.1, 0.0]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        credits_PN = objective(rewards_PN, log_ratios_PN)
    assert not credits_PN.requires_grad
    torch.testing.assert_close(credits_PN, objective(rewards_PN, log_ratios_PN.detach()), rtol=0.0, atol=0.0)


def test_diagnostics_are_their_definitions() -> None:
    rewards, ratios = GROUPS[-1]
    rewards_PN = torch.tensor([[*rewards, nan], [nan] * 9 + [1.0]], dtype=torch.float64)
    log_ratios_PN = torch.tensor([[*ratios, 1.0], [1.0] * 10], dtype=torch.float64).log()
    diagnostics = group_diagnostics(rewards_PN, log_ratios_PN, k=3)
    weights = torch.tensor([w for _, w, _ in weighted_subsets(rewards, ratios, 3)], dtype=torch.float64)
    effective = weights.sum() ** 2 / weights.square().sum()
    torch.testing.assert_close(diagnostics.log_normaliser_P[0], weights.mean().log(), **EXACT)
    torch.testing.assert_close(diagnostics.effective_fraction_P[0], effective / len(weights), **EXACT)
    torch.testing.assert_close(diagnostics.log_ratio_std_P[0], log_ratios_PN[0, :9].std(correction=0), **EXACT)
    assert diagnostics.is_too_small_P.tolist() == [False, True]
    assert diagnostics.log_normaliser_P[1].isnan()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxAtK(0), "`k` is 0"),
        (lambda: PassKTraining(-1), "`k` is -1"),
        (lambda: MaxAtK(1, "loo1"), "use RLOO"),
        (lambda: ExactMaxAtK(1, "loo1"), "`baseline` is loo1 with `k` 1"),
        (lambda: OffPolicyMaxAtK(1, "loo1"), "`baseline` is loo1"),
        (lambda: OffPolicyMaxAtK(2, clamp=0.0), "`clamp` is 0.0"),
        (lambda: ExactMaxAtK(2, ratio_clip=1.0), "`ratio_clip` is 1.0"),
        (lambda: SetAdvantage(0), "`k` is 0"),
        (lambda: SetAdvantage(2, 1.5), r"`min_effective_fraction` is 1\.5"),
        (lambda: SetAdvantage(2, nan), "`min_effective_fraction` is nan"),
        (lambda: credits_of(SetAdvantage(2), [0.0, 1.0]), "are both 2: SetAdvantage"),
        (lambda: credits_of(SetAdvantage(3), [0.0, 1.0]), "`objective.k` is 3, but `num_completions` is 2"),
        (lambda: RSGRPO(beta=0.0), "`beta` is 0.0"),
        (lambda: RSGRPO(beta=float("nan")), "`beta` is nan"),
        (lambda: NSR(threshold=inf), "`threshold` is inf"),
        (lambda: WReinforce(threshold=nan), "`threshold` is nan"),
        (lambda: WReinforce(-0.1), r"`positive_weight` is -0\.1"),
        (lambda: WReinforce(inf), "`positive_weight` is inf"),
        (lambda: Entropic(0.0), r"`kl` is 0\.0"),
        (lambda: Entropic(nan), "`kl` is nan"),
        (lambda: credits_of(Entropic(), [0.0, 1.0]), "`objective.kl` 0.693147 needs `num_completions` of at least 3"),
        (lambda: PlugInMaxAtK(0.5), r"`k` is 0\.5"),
        (lambda: PlugInMaxAtK(nan), "`k` is nan"),
        (lambda: PlugInMaxAtK(inf), "`k` is inf"),
        (
            lambda: credits_of(PlugInMaxAtK(128), [0.0, 1.0]),
            "`objective.k` is 128 and `num_completions` 2: .* be 0.*urn",
        ),
        (lambda: credits_of(PlugInMaxAtK(4), [1.0]), "`num_completions` of at least 2, not 1"),
        (lambda: credits_of(MaxAtK(5), [0.0, 1.0]), "PlugInMaxAtK takes a larger k, with bias"),
        (lambda: credits_of(MaxAtK(5), [0.0, 1.0]), "`objective.k` is 5, but `num_completions` is 2"),
        (lambda: credits_of(ExactMaxAtK(3, "none"), [0.0, 1.0]), "`objective.k` is 3"),
        (lambda: credits_of(OffPolicyMaxAtK(3), [0.0, 1.0]), "`objective.k` is 3"),
        (lambda: credits_of(MaxAtK(2), [0.0, 1.0]), "`objective.k` and `num_completions` are both 2"),
        (lambda: credits_of(MaxAtK(2, "zscore"), [0.0, 1.0]), "are both 2: baseline `zscore`"),
        (lambda: credits_of(PassKTraining(2), [0.0, 1.0]), "are both 2: Pass@k Training"),
        (lambda: credits_of(OffPolicyMaxAtK(2, "mean"), [0.0, 1.0]), "are both 2: baseline `mean`"),
        (lambda: credits_of(OffPolicyMaxAtK(2, "zscore"), [0.0, 1.0]), "are both 2: baseline `zscore`"),
        (lambda: credits_of(ExactMaxAtK(2), [0.0, 1.0]), "are both 2: baseline `centred`"),
        (lambda: credits_of(ExactMaxAtK(2, "loo1", self_normalise=True), [0.0, 1.0]), "`self_normalise`"),
        (lambda: credits_of(GRPO(), [0.5]), "`num_completions` of at least 2, not 1"),
        (lambda: credits_of(RLOO(), [0.5]), "`num_completions` of at least 2, not 1"),
        (lambda: credits_of(MaxRL(), [0.5, 1.0]), "MaxRL is defined for binary rewards only"),
        (lambda: credits_of(GRPO(), [0.5, float("inf")]), "finite"),
        (lambda: credits_of(ExactMaxAtK(1), [0.5, 1.0], [nan, 1.0]), "log-ratio of a sample that has a reward is NaN"),
        (lambda: credits_of(ExactMaxAtK(1), [0.5, 1.0], [1.0]), "log-ratios have shape"),
    ],
)
def test_degenerate_choices_are_refused_by_name(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
