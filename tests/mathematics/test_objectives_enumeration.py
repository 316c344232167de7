"""Enumeration of toy categorical policies: what each objective's credits are in expectation, without sampling noise.

All V^n batches of n actions are listed with their probability under the policy that samples; the expectation of
sum_i credit_i grad log pi(y_i) is compared with autograd's gradient of the exact max@k of the policy being trained.
"""

from collections.abc import Callable
from itertools import combinations, product
from math import comb, log

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from maxk_lightning.objectives import (
    GRPO,
    NSR,
    RLOO,
    RSGRPO,
    BonMaxMean,
    BonMaxSecond,
    DrGRPO,
    Entropic,
    ExactMaxAtK,
    MaxAtK,
    MaxRL,
    Objective,
    OffPolicyMaxAtK,
    PassKTraining,
    PlugInMaxAtK,
    SetAdvantage,
    WeightedObjectives,
    WReinforce,
)

Rewards = list[float]
REWARDS: list[Rewards] = [[0.0, 0.4, 1.0], [0.5, -1.0, 0.5], [-2.0, 3.0, 0.25]]  # plain, tied, negative
LOGITS = [-0.2, 0.5, 0.1]
OLD_LOGITS = [0.3, 0.1, -0.6]
KS_AND_BASELINES = [
    (k, baseline)
    for k in (1, 2, 3, 4)
    for baseline in ("centred", "loo1", "none")
    if (k, baseline) not in ((1, "loo1"), (4, "centred"))  # refused: no baseline is left
]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def expected_update(
    objective: Callable[[Tensor, Tensor], Tensor],
    rewards: Rewards,
    logits: list[float],
    old_logits: list[float],
    n: int,
    is_lost: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """E[sum_i credit_i grad log pi(y_i)] with respect to the logits; grad log softmax(y) = e_y - pi."""
    policy_V, old_V = float64(logits).softmax(-1), float64(old_logits).softmax(-1)
    actions_PN = torch.tensor(list(product(range(len(rewards)), repeat=n)))
    rewards_PN = float64(rewards)[actions_PN]
    if is_lost is not None:
        rewards_PN = rewards_PN.masked_fill(is_lost(actions_PN), torch.nan)
    credits_PN = objective(rewards_PN, (policy_V / old_V).log()[actions_PN])
    weights_PN = old_V[actions_PN].prod(-1, keepdim=True) * credits_PN
    weights_V = torch.stack([(weights_PN * (actions_PN == action)).sum() for action in range(len(rewards))])
    return weights_V - weights_V.sum() * policy_V


def gradient(objective: Callable[[Tensor], Tensor], logits: list[float] = LOGITS) -> Tensor:
    """Autograd's gradient of a function of the policy's probabilities."""
    logits_V = float64(logits).requires_grad_()
    (gradient_V,) = torch.autograd.grad(objective(logits_V.softmax(-1)), logits_V)
    return gradient_V


def exact_max_at_k(policy_V: Tensor, rewards: Rewards, k: int) -> Tensor:
    """E[max of k samples] = sum over distinct rewards v of v (F(v)^k - F(below v)^k)."""
    total, below = policy_V.new_zeros(()), policy_V.new_zeros(())
    for value in sorted(set(rewards)):
        up_to = below + sum(policy_V[a] for a, r in enumerate(rewards) if r == value)
        total, below = total + value * (up_to**k - below**k), up_to
    return total


def true_gradient(rewards: Rewards, k: int) -> Tensor:
    return gradient(lambda policy_V: exact_max_at_k(policy_V, rewards, k))


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize(("k", "baseline"), KS_AND_BASELINES)
def test_on_policy_credits_are_unbiased(rewards: Rewards, k: int, baseline: str) -> None:
    update_V = expected_update(MaxAtK(k, baseline), rewards, LOGITS, LOGITS, n=4)  # type: ignore[arg-type]
    torch.testing.assert_close(update_V, true_gradient(rewards, k), **EXACT)


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize(("k", "baseline"), KS_AND_BASELINES)
@pytest.mark.parametrize("old_logits", [LOGITS, OLD_LOGITS, [2.0, -1.0, 0.0]])
def test_exact_credits_are_unbiased_for_any_behaviour_policy(
    rewards: Rewards, k: int, baseline: str, old_logits: list[float]
) -> None:
    objective = ExactMaxAtK(k, baseline, ratio_clip=None)  # type: ignore[arg-type]
    update_V = expected_update(objective, rewards, LOGITS, old_logits, n=4)
    torch.testing.assert_close(update_V, true_gradient(rewards, k), **EXACT)


def times_own_ratio(objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    """What a loss with one unbounded ratio per sequence makes of advantages."""
    return lambda rewards_PN, log_ratios_PN: log_ratios_PN.exp() * objective(rewards_PN, log_ratios_PN)


def weight_of_the_others(log_ratios_PN: Tensor, k: int) -> Tensor:
    """e_{k-1}(rho_-i) / C(n-1, k-1) of every sample, by listing the subsets."""
    n = log_ratios_PN.shape[1]
    columns = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        sums = [log_ratios_PN[:, list(subset)].sum(-1) for subset in combinations(others, k - 1)]
        columns.append(torch.stack(sums).exp().mean(0))
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("old_logits", [LOGITS, OLD_LOGITS, [2.0, -1.0, 0.0]])
def test_set_advantage_times_own_ratio_times_weight_of_the_others_is_the_exact_credit(
    rewards: Rewards, k: int, old_logits: list[float]
) -> None:
    def product_form(rewards_PN: Tensor, log_ratios_PN: Tensor) -> Tensor:
        credits_PN = times_own_ratio(SetAdvantage(k, 0.0))(rewards_PN, log_ratios_PN)
        credits_PN = credits_PN * weight_of_the_others(log_ratios_PN, k)
        torch.testing.assert_close(credits_PN, ExactMaxAtK(k, ratio_clip=None)(rewards_PN, log_ratios_PN), **EXACT)
        return credits_PN

    update_V = expected_update(product_form, rewards, LOGITS, old_logits, n=4)
    torch.testing.assert_close(update_V, true_gradient(rewards, k), **EXACT)


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("least", [0.0, 0.7, 1.0])
def test_set_advantages_are_unbiased_on_policy(rewards: Rewards, k: int, least: float) -> None:
    update_V = expected_update(times_own_ratio(SetAdvantage(k, least)), rewards, LOGITS, LOGITS, n=4)
    torch.testing.assert_close(update_V, true_gradient(rewards, k), **EXACT)


@pytest.mark.parametrize("least", [0.0, 1.0])
def test_at_k_1_set_advantages_with_the_own_ratio_are_unbiased_for_any_behaviour_policy(least: float) -> None:
    for rewards in REWARDS:
        update_V = expected_update(times_own_ratio(SetAdvantage(1, least)), rewards, LOGITS, OLD_LOGITS, n=4)
        torch.testing.assert_close(update_V, true_gradient(rewards, 1), **EXACT)


def test_wholly_tempered_set_advantages_ascend_the_best_of_one_new_sample_and_old_others() -> None:
    rewards, k, n = REWARDS[0], 3, 4
    old_V = float64(OLD_LOGITS).softmax(-1)

    def best_with_old_others(policy_V: Tensor) -> Tensor:
        mixed = [exact_max_at_k(old_V + t * (policy_V - old_V), rewards, k) for t in (1e-4, -1e-4)]
        return (mixed[0] - mixed[1]) / 2e-4  # derivative of a cubic at t = 0: off by 1e-8

    expected_V = gradient(best_with_old_others)
    update_V = expected_update(times_own_ratio(SetAdvantage(k, 1.0)), rewards, LOGITS, OLD_LOGITS, n)
    torch.testing.assert_close(update_V, expected_V, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "old_logits"),
    [(MaxAtK(2), LOGITS), (MaxAtK(2, "loo1"), LOGITS), (MaxAtK(2, "none"), LOGITS), (RLOO(), LOGITS)]
    + [(ExactMaxAtK(2, baseline, ratio_clip=None), OLD_LOGITS) for baseline in ("centred", "loo1", "none")],
    ids=str,
)
def test_losing_samples_at_random_does_not_bias(objective: Objective, old_logits: list[float]) -> None:
    k = getattr(objective, "k", 1)
    rewards = REWARDS[0]
    update_V = expected_update(
        objective, rewards, LOGITS, old_logits, n=4, is_lost=lambda actions_PN: torch.arange(4) == 1
    )
    torch.testing.assert_close(update_V, true_gradient(rewards, k), **EXACT)


def test_rloo_is_unbiased_for_the_mean_and_dr_grpo_short_by_one_part_in_n() -> None:
    for rewards in REWARDS:
        expected_V = true_gradient(rewards, 1)
        torch.testing.assert_close(expected_update(RLOO(), rewards, LOGITS, LOGITS, n=4), expected_V, **EXACT)
        shrunk_V = expected_update(DrGRPO(), rewards, LOGITS, LOGITS, n=4)
        torch.testing.assert_close(shrunk_V, expected_V * 3 / 4, **EXACT)


def test_a_mixture_is_unbiased_for_the_mixture_of_objectives() -> None:
    objective = WeightedObjectives([ExactMaxAtK(3, ratio_clip=None), ExactMaxAtK(1, ratio_clip=None)], [0.7, -0.2])
    update_V = expected_update(objective, REWARDS[0], LOGITS, OLD_LOGITS, n=4)
    torch.testing.assert_close(
        update_V, 0.7 * true_gradient(REWARDS[0], 3) - 0.2 * true_gradient(REWARDS[0], 1), **EXACT
    )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_max_rl_ascends_log_p_cut_after_n_minus_1_terms(n: int) -> None:
    successes = [0.0, 1.0, 0.0]
    expected_V = sum(true_gradient(successes, k) / k for k in range(1, n))
    torch.testing.assert_close(expected_update(MaxRL(), successes, LOGITS, LOGITS, n), expected_V, **EXACT)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_w_reinforce_ascends_pass_at_1_whatever_its_positive_weight(n: int, weight: float) -> None:
    rewards, correct = [1.0, 0.5, 0.0], [1.0, 0.0, 0.0]
    expected_V = (1 + weight) * true_gradient(correct, 1)
    torch.testing.assert_close(expected_update(WReinforce(weight), rewards, LOGITS, LOGITS, n), expected_V, **EXACT)
    if weight == 0.0:
        torch.testing.assert_close(expected_update(NSR(), rewards, LOGITS, LOGITS, n), expected_V, **EXACT)


@pytest.mark.parametrize("baseline", ["none", "loo1"])
def test_first_order_is_exact_for_k_1_and_off_by_second_order_above(baseline: str) -> None:
    rewards, k = REWARDS[0], 3
    objective = OffPolicyMaxAtK(k, baseline, clamp=None)  # type: ignore[arg-type]

    def error_at(step: float) -> float:
        old_logits = [new + step * (old - new) for new, old in zip(LOGITS, OLD_LOGITS, strict=True)]
        update_V = expected_update(objective, rewards, LOGITS, old_logits, n=4)
        return float((update_V - true_gradient(rewards, k)).norm())

    assert error_at(0.0) < 1e-12
    assert error_at(1.0) > 1e-2
    # halving the drift quarters the bias: exactly in the limit, within 2 % at these steps
    assert error_at(0.02) / error_at(0.01) == pytest.approx(4.0, rel=0.02)
    if baseline == "none":
        update_V = expected_update(OffPolicyMaxAtK(1, clamp=None), rewards, LOGITS, OLD_LOGITS, n=4)
        torch.testing.assert_close(update_V, true_gradient(rewards, 1), **EXACT)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_mean_centring_after_weighting_pushes_away_from_the_behaviour_policy(k: int) -> None:
    reward, n = 0.8, 4
    update_V = expected_update(OffPolicyMaxAtK(k, "mean", clamp=None), [reward] * 3, LOGITS, OLD_LOGITS, n)
    old_V = float64(OLD_LOGITS).softmax(-1)
    kl_gradient_V = gradient(lambda policy_V: (old_V * (old_V / policy_V).log()).sum())
    torch.testing.assert_close(update_V, reward * k * (1 - k / n) * kl_gradient_V, **EXACT)
    exact_V = expected_update(ExactMaxAtK(k, ratio_clip=None), [reward] * 3, LOGITS, OLD_LOGITS, n)
    torch.testing.assert_close(exact_V, torch.zeros(3, dtype=torch.float64), **EXACT)


def test_clipped_ratios_are_unbiased_only_where_the_clip_does_not_bind() -> None:
    rewards, k = REWARDS[0], 2
    ratios_V = float64(LOGITS).softmax(-1) / float64(OLD_LOGITS).softmax(-1)
    largest = float(torch.maximum(ratios_V, 1 / ratios_V).max())
    expected_V = true_gradient(rewards, k)
    loose_V = expected_update(ExactMaxAtK(k, ratio_clip=largest * 1.01), rewards, LOGITS, OLD_LOGITS, n=4)
    torch.testing.assert_close(loose_V, expected_V, **EXACT)
    tight_V = expected_update(ExactMaxAtK(k, ratio_clip=largest * 0.8), rewards, LOGITS, OLD_LOGITS, n=4)
    assert (tight_V - expected_V).norm() > 1e-3


# Rescaling and selecting objectives are biased for every finite n; what they converge to says what they do. In a group
# of n from two actions only the count of successes matters, which makes large n enumerable.
P_LOGITS = [0.0, 0.4]
BINARY: Rewards = [0.0, 1.0]


def two_action_update(objective: Objective, n: int, old_logits: list[float] = P_LOGITS) -> float:
    """E[sum_i credit_i d log pi(y_i) / d logit_1] with binomial weights."""
    policy_V, old_V = float64(P_LOGITS).softmax(-1), float64(old_logits).softmax(-1)
    successes_P = torch.arange(n + 1)
    actions_PN = (torch.arange(n) < successes_P.unsqueeze(-1)).long()
    weights_P = float64([comb(n, c) for c in range(n + 1)]) * old_V[1] ** successes_P * old_V[0] ** (n - successes_P)
    credits_PN = objective(actions_PN.double(), (policy_V / old_V).log()[actions_PN])
    return float((weights_P.unsqueeze(-1) * credits_PN * (actions_PN - policy_V[1])).sum())


def success_gradient(function: Callable[[Tensor], Tensor]) -> float:
    return float(gradient(lambda policy_V: function(policy_V[1]), P_LOGITS)[1])


def success_rate() -> float:
    return float(float64(P_LOGITS).softmax(-1)[1])


def pass_at_3(p: Tensor) -> Tensor:
    return 1 - (1 - p) ** 3


P = success_rate()
RATE_GRADIENT = success_gradient(lambda p: p)
PASS_GRADIENT = success_gradient(pass_at_3)
PASS_STD = ((1 - P) ** 3 * (1 - (1 - P) ** 3)) ** 0.5
BEST_OF_3_GAIN = (1 - P) ** 2  # E[max of 3 | success] - E[max of 3 | failure]

KL = 0.1


def divergence_of_success(q: float) -> float:
    return q * log(q / P) + (1 - q) * log((1 - q) / (1 - P))


TILTED: float = brentq(lambda q: divergence_of_success(q) - KL, P, 1 - 1e-12)
"Probability of success, tilted by e^{beta r} until it is KL away."

LIMITS: list[tuple[Objective, float]] = [
    (GRPO(), RATE_GRADIENT / (P * (1 - P)) ** 0.5),
    (RSGRPO(beta=2.0), success_gradient(lambda p: (1 - p + p * torch.e**2).log() / 2)),
    (BonMaxMean(), (1 - P) * RATE_GRADIENT),
    (Entropic(KL), TILTED - P),  # d log E[e^{beta r}] / d logit_1 at the beta of the tilt
    (PlugInMaxAtK(3), PASS_GRADIENT),
    (PlugInMaxAtK(3, "urn"), PASS_GRADIENT),
    (PassKTraining(3), PASS_GRADIENT / (3 * PASS_STD)),
    (MaxAtK(3, "zscore"), PASS_GRADIENT / 3 / (BEST_OF_3_GAIN * (P * (1 - P)) ** 0.5)),
]


@pytest.mark.parametrize(("objective", "limit"), LIMITS, ids=lambda x: type(x).__name__)
def test_rescaling_objectives_are_biased_and_reach_their_limit_as_one_over_n(
    objective: Objective, limit: float
) -> None:
    errors = {n: two_action_update(objective, n) - limit for n in (8, 100, 200)}
    assert abs(errors[8]) > 1e-3, "biased at the size people use"
    assert errors[100] / errors[200] == pytest.approx(2.0, rel=0.05)


def test_bon_max_second_ascends_the_probability_of_the_best_with_the_gap_for_a_step() -> None:
    # with two actions the second best is the other one whenever it was sampled, so only one-sided groups are lost
    n = 12
    expected = RATE_GRADIENT - success_gradient(lambda p: p**n / n)
    assert two_action_update(BonMaxSecond(), n) == pytest.approx(expected, abs=1e-12)


def test_leaving_the_normaliser_out_is_biased_off_policy_and_vanishes_as_one_over_n() -> None:
    objective = ExactMaxAtK(3, self_normalise=True, ratio_clip=None)
    on_policy = two_action_update(objective, 8)
    assert on_policy == pytest.approx(PASS_GRADIENT, abs=1e-12)
    errors = {n: two_action_update(objective, n, [0.5, 0.0]) - PASS_GRADIENT for n in (8, 100, 200)}
    assert abs(errors[8]) > 1e-3
    assert errors[100] / errors[200] == pytest.approx(2.0, rel=0.1)


def test_leaving_out_the_weight_of_the_others_is_biased_off_policy_and_vanishes_as_one_over_n() -> None:
    def update(n: int) -> float:
        return two_action_update(times_own_ratio(SetAdvantage(3, 0.0)), n, [0.5, 0.0])  # type: ignore[arg-type]

    errors = {n: update(n) - PASS_GRADIENT for n in (8, 100, 200)}
    assert abs(errors[8]) > 1e-3
    assert errors[100] / errors[200] == pytest.approx(2.0, rel=0.1)
