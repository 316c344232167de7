"""Properties that hold for every group: order, shift, scale, padding, ties, signs, sums."""

from math import nan
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maxk_lightning.objectives import (
    GRPO,
    NSR,
    RLOO,
    RSGRPO,
    BonMaxMean,
    BonMaxSecond,
    CVaR,
    DrGRPO,
    Entropic,
    ExactMaxAtK,
    ExactRatios,
    MaxAtK,
    Objective,
    OffPolicyMaxAtK,
    PassKTraining,
    PlugInMaxAtK,
    RankWeighted,
    SetAdvantage,
    SubsetQuantile,
    TemperedRatios,
    TopMMean,
    WReinforce,
    group_diagnostics,
)
from tests.support.examples import examples

K = 3
# values on a grid make ties common; the grid is exact in float64, so shifts by it do not round
grid = st.integers(-8, 8).map(lambda i: i / 4)
groups = st.integers(K + 1, 10).flatmap(
    lambda n: st.tuples(st.lists(grid, min_size=n, max_size=n), st.lists(st.floats(-2.0, 2.0), min_size=n, max_size=n))
)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, ratios up to e^6 in a product of three

RELAXED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # for busy machines

UNBIASED: list[Objective] = [
    *(MaxAtK(K, baseline) for baseline in ("centred", "loo1", "none")),
    *(ExactMaxAtK(K, baseline, ratio_clip=None) for baseline in ("centred", "loo1", "none")),
]
EVERY = [
    *UNBIASED,
    MaxAtK(K, "zscore"),
    ExactMaxAtK(K, self_normalise=True, ratio_clip=1.5),
    *(OffPolicyMaxAtK(K, baseline, clamp=None) for baseline in ("none", "loo1", "mean")),
    GRPO(),
    DrGRPO(),
    RLOO(),
    BonMaxMean(),
    BonMaxSecond(),
    RSGRPO(),
    NSR(),
    WReinforce(threshold=0.5),
    Entropic(),
    PlugInMaxAtK(16),
    PlugInMaxAtK(16, "urn"),
    PassKTraining(K),
    SetAdvantage(K),
    SetAdvantage(K, 0.0),
    RankWeighted(K, [1.0, -2.0, 0.5]),
    CVaR(K, 0.5),
    ExactRatios(TopMMean(K, 2), None),
    TemperedRatios(SubsetQuantile(K, 0.5)),
]
THRESHOLD = (NSR, WReinforce)
SHIFT_INVARIANT = [
    o for o in EVERY if getattr(o, "baseline", "") not in ("none", "mean") and not isinstance(o, THRESHOLD)
]
SCALE_FREE = (GRPO, PassKTraining, Entropic)


def tensors(group: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([group[0]], dtype=torch.float64), torch.tensor([group[1]], dtype=torch.float64)


@pytest.mark.parametrize("objective", EVERY, ids=repr)
@given(group=groups, data=st.data())
@settings(**RELAXED, max_examples=examples(15))
def test_permuting_and_padding_a_group_permutes_and_pads_its_credits(
    objective: Objective, group: tuple[list[float], list[float]], data: st.DataObject
) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    order = torch.tensor(data.draw(st.permutations(range(rewards_PN.shape[1]))))
    padding = torch.full((1, 2), nan, dtype=torch.float64)
    credits_PN = objective(rewards_PN, log_ratios_PN)
    padded_PN = objective(
        torch.cat([padding, rewards_PN[:, order]], -1), torch.cat([padding, log_ratios_PN[:, order]], -1)
    )
    torch.testing.assert_close(padded_PN[:, 2:], credits_PN[:, order], **CLOSE)
    assert (padded_PN[:, :2] == 0).all()


@pytest.mark.parametrize("objective", SHIFT_INVARIANT, ids=repr)
@given(group=groups, shift=grid)
@settings(**RELAXED, max_examples=examples(15))
def test_shifting_all_rewards_changes_nothing_with_a_baseline(
    objective: Objective, group: tuple[list[float], list[float]], shift: float
) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    shifted_PN = objective(rewards_PN + shift, log_ratios_PN)
    torch.testing.assert_close(shifted_PN, objective(rewards_PN, log_ratios_PN), **CLOSE)


@pytest.mark.parametrize("objective", [o for o in EVERY if not isinstance(o, (RSGRPO, *THRESHOLD))], ids=repr)
@given(group=groups)
@settings(**RELAXED, max_examples=examples(15))
def test_scaling_rewards_scales_credits_or_leaves_them(
    objective: Objective, group: tuple[list[float], list[float]]
) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    is_scale_free = isinstance(objective, SCALE_FREE) or getattr(objective, "baseline", "") == "zscore"
    factor = 1.0 if is_scale_free else 0.5
    halved_PN = objective(0.5 * rewards_PN, log_ratios_PN)
    torch.testing.assert_close(halved_PN, factor * objective(rewards_PN, log_ratios_PN), **CLOSE)


@pytest.mark.parametrize("objective", EVERY, ids=repr)
@given(group=groups)
@settings(**RELAXED, max_examples=examples(15))
def test_tied_samples_with_equal_ratios_get_equal_credits(
    objective: Objective, group: tuple[list[float], list[float]]
) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    credits_N = objective(rewards_PN, torch.full_like(log_ratios_PN, 0.3))[0]
    for reward in set(group[0]):
        tied = credits_N[rewards_PN[0] == reward]
        torch.testing.assert_close(tied, tied[:1].expand_as(tied), **CLOSE)


@given(group=groups)
@settings(**RELAXED, max_examples=examples(30))
def test_loo1_never_pushes_down_and_centred_sums_to_zero_on_policy(group: tuple[list[float], list[float]]) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    for objective in (MaxAtK(K, "loo1"), ExactMaxAtK(K, "loo1", ratio_clip=None)):
        assert (objective(rewards_PN, log_ratios_PN) >= 0).all()
    assert abs(MaxAtK(K)(rewards_PN, log_ratios_PN).sum()) < 1e-12


@given(group=groups, factor=st.floats(-3.0, 3.0))
@settings(**RELAXED, max_examples=examples(25))
def test_a_common_factor_of_all_ratios_moves_only_the_normaliser(
    group: tuple[list[float], list[float]], factor: float
) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    credits_PN = ExactMaxAtK(K, ratio_clip=None)(rewards_PN, log_ratios_PN)
    shifted_PN = ExactMaxAtK(K, ratio_clip=None)(rewards_PN, log_ratios_PN + factor)
    torch.testing.assert_close(shifted_PN, credits_PN * torch.tensor(K * factor, dtype=torch.float64).exp(), **CLOSE)
    free = ExactMaxAtK(K, self_normalise=True, ratio_clip=None)
    torch.testing.assert_close(
        free(rewards_PN, log_ratios_PN + factor), free(rewards_PN, log_ratios_PN), rtol=1e-9, atol=1e-12
    )


@given(group=groups)
@settings(**RELAXED, max_examples=examples(25))
def test_effective_fraction_is_a_fraction_and_one_only_without_spread(group: tuple[list[float], list[float]]) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    fraction = group_diagnostics(rewards_PN, log_ratios_PN, K).effective_fraction_P.item()
    assert 0.0 < fraction <= 1.0 + 1e-12
    assume(log_ratios_PN.std() > 0.1)
    assert fraction < 1.0


wild_groups = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.integers(1, n - 1),
        st.lists(grid, min_size=n, max_size=n),
        st.lists(st.floats(-500.0, 500.0) | st.sampled_from([-500.0, 0.0, 500.0]), min_size=n, max_size=n),
    )
)  # k < n, rewards, log-ratios


@given(
    group=wild_groups,
    least=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
@settings(**RELAXED, max_examples=examples(200))
def test_set_advantages_never_exceed_the_range_of_the_rewards(
    group: tuple[int, list[float], list[float]], least: float
) -> None:
    k, rewards, log_ratios = group
    credits_PN = SetAdvantage(k, least)(*tensors((rewards, log_ratios)))
    bound = k / len(rewards) * (max(rewards) - min(rewards))
    assert credits_PN.isfinite().all()
    assert (credits_PN.abs() <= bound * (1 + 1e-9)).all()


@given(group=wild_groups)
@settings(**RELAXED, max_examples=examples(100))
def test_default_credits_with_ratios_stay_within_their_bounds(group: tuple[int, list[float], list[float]]) -> None:
    k, rewards, log_ratios = group
    share, size, spread = k / len(rewards), max(map(abs, rewards)), max(rewards) - min(rewards)
    exact, first_order = ExactMaxAtK(k), OffPolicyMaxAtK(k)
    assert exact.ratio_clip is not None
    assert first_order.clamp is not None
    exact_bound, first_order_bound = share * exact.ratio_clip**k, share * (1 + k * first_order.clamp)
    inclusion_bound = min(1.0, share * exact.ratio_clip ** (2 * k))  # the largest pi_i: W is divided by a small sum
    bounds: list[tuple[Objective, float]] = [
        (exact, exact_bound * spread),
        (ExactMaxAtK(k, "none"), exact_bound * size),
        (ExactMaxAtK(k, self_normalise=True), inclusion_bound * spread),
        (first_order, first_order_bound * size),
        (OffPolicyMaxAtK(k, "mean"), 2 * first_order_bound * size),
    ]
    if k > 1:
        bounds += [(ExactMaxAtK(k, "loo1"), exact_bound * spread)]
        bounds += [(OffPolicyMaxAtK(k, "loo1"), first_order_bound * spread)]
    for objective, bound in bounds:
        largest = objective(*tensors((rewards, log_ratios))).abs().max().item()
        assert largest <= bound * (1 + 1e-9), objective


@given(group=groups, factor=st.floats(-3.0, 3.0), index=st.integers(0, K))
@settings(**RELAXED, max_examples=examples(25))
def test_set_advantages_see_neither_their_own_ratio_nor_a_common_factor(
    group: tuple[list[float], list[float]], factor: float, index: int
) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    own_PN = log_ratios_PN.clone()
    own_PN[0, index] += factor
    exact = SetAdvantage(K, 0.0)
    credits_PN = exact(rewards_PN, log_ratios_PN)
    torch.testing.assert_close(exact(rewards_PN, own_PN)[0, index], credits_PN[0, index], **CLOSE)
    torch.testing.assert_close(exact(rewards_PN, log_ratios_PN + factor), credits_PN, **CLOSE)


@given(group=groups, exponents=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)))
@settings(**RELAXED, max_examples=examples(30))
def test_the_effective_fraction_falls_with_the_exponent_so_that_bisection_finds_the_largest(
    group: tuple[list[float], list[float]], exponents: tuple[float, float]
) -> None:
    rewards_PN, log_ratios_PN = tensors(group)
    fractions = [
        group_diagnostics(rewards_PN, alpha * log_ratios_PN, K).effective_fraction_P.item()
        for alpha in sorted(exponents)
    ]
    assert fractions[0] >= fractions[1] - 1e-12
