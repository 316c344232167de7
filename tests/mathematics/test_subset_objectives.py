"""Objectives over subsets against their definition: all k-subsets listed, differentiated by autograd."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb, isnan, nan, prod
from statistics import fmean

import pytest
import torch
from torch import Tensor

from maxk_lightning.estimators import max_at_k
from maxk_lightning.objectives import (
    RLOO,
    CVaR,
    DistinctMaxAtK,
    ExactMaxAtK,
    ExactRatios,
    GroupFacts,
    MaxAtK,
    Objective,
    RankWeighted,
    SetAdvantage,
    Staged,
    SubsetObjective,
    SubsetQuantile,
    TemperedRatios,
    TopMMean,
    WeightedObjectives,
    check_group_size,
    is_idle,
    needs_behaviours,
    objective_at,
    tempering,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64 against float64 sums over at most 70 subsets
# rewards, ratios and behaviours: ties, negative rewards, unknown and incorrect behaviours, missing samples
Group = tuple[list[float], list[float], list[int]]
GROUPS: list[Group] = [
    ([0.2, -1.5], [0.5, 2.0], [0, -1]),
    ([1.0, 1.0, 1.0, 1.0], [0.5, 2.0, 1.0, 1.5], [0, 1, 0, 2]),
    ([1.0, 0.0, 1.0, 0.0, 1.0], [0.2, 5.0, 1.0, 0.7, 3.0], [0, 1, 2, 1, 0]),
    ([1.0, 2.0, -0.5, 1.0, 3.0, 2.0], [1.3, 0.6, 1.0, 0.8, 1.7, 1.1], [3, 1, 0, 3, -1, 2]),
    ([nan, 1.0, 0.5, nan, 1.0, 1.0, 0.25, 0.0], [1.0, 0.98, 1.3, 0.9, 4.0, 0.2, 1.1, 0.97], [0, 1, 1, 2, 3, 1, 0, 4]),
    ([0.5, 1.0, 0.5, 1.0, 0.25, 1.0, 1.0, 0.75], [1.05, 0.3, 1.0, 0.9, 1.2, 3.0, 1.1, 0.97], [0, 5, 0, 5, 1, 6, 7, 2]),
]
Value = Callable[[list[float], list[int]], float]
"What a subset is worth: its rewards and behaviours."


def distinct(rewards: list[float], behaviours: list[int], correct_at: float = 1.0) -> int:
    return len({b for r, b in zip(rewards, behaviours, strict=True) if r >= correct_at and b >= 0})


def ranked(weights: Sequence[float]) -> Value:
    return lambda rewards, _: sum(w * r for w, r in zip(weights, sorted(rewards), strict=True))


def quantile(q: float) -> Value:
    """The smallest reward with a share of at least q at or below it."""
    return lambda rewards, _: next(
        r for r in sorted(rewards) if sum(other <= r for other in rewards) >= q * len(rewards) - 1e-12
    )


def cases(k: int) -> list[tuple[SubsetObjective, Value]]:
    weights = [0.5, -1.0, 0.25, 2.0, 0.0, 1.5, -0.5, 1.0][:k]
    return [
        (RankWeighted(k, weights), ranked(weights)),
        (TopMMean(k, max(1, k // 2)), lambda rewards, _: fmean(sorted(rewards)[-max(1, k // 2) :])),
        (TopMMean(k, k), lambda rewards, _: fmean(rewards)),
        (SubsetQuantile(k, 0.0), lambda rewards, _: min(rewards)),
        (SubsetQuantile(k, 0.5), quantile(0.5)),
        (SubsetQuantile(k, 0.75), quantile(0.75)),
        (CVaR(k, 1 / k), lambda rewards, _: max(rewards)),
        (CVaR(k, 2 / max(2, k), "lower"), lambda rewards, _: fmean(sorted(rewards)[: min(2, k)])),
        (DistinctMaxAtK(k, 0.3), lambda rewards, behaviours: max(rewards) + 0.3 * distinct(rewards, behaviours)),
        (
            DistinctMaxAtK(k, 2.0, correct_at=0.5),
            lambda rewards, behaviours: max(rewards) + 2.0 * distinct(rewards, behaviours, 0.5),
        ),
    ]


def present(group: Group) -> list[int]:
    return [i for i, reward in enumerate(group[0]) if not isnan(reward)]


CASES = [
    pytest.param(group, objective, value, id=f"{number}-{objective}")
    for number, group in enumerate(GROUPS)
    for k in sorted({1, 2, len(present(group)) // 2 + 1, len(present(group))} - {0})
    for objective, value in cases(k)
]
CENTRED_CASES = [case for case in CASES if case.values[1].k < len(present(case.values[0]))]  # type: ignore[union-attr,arg-type]


def tensors(group: Group) -> tuple[Tensor, Tensor, Tensor]:
    rewards, ratios, behaviours = group
    log_ratios_PN = torch.tensor([ratios], dtype=torch.float64).log()
    return torch.tensor([rewards], dtype=torch.float64), log_ratios_PN, torch.tensor([behaviours])


def plain(objective: SubsetObjective) -> SubsetObjective:
    fields = vars(objective) | {"baseline": "none"}
    return type(objective)(**fields)


def value_of(group: Group, members: Sequence[int], value: Value) -> float:
    return value([group[0][i] for i in members], [group[2][i] for i in members])


def enumerated(group: Group, value: Value, k: int, log_ratios_N: Tensor) -> Tensor:
    """J: the mean over k-subsets of the product of their ratios times their value."""
    subsets = list(combinations(present(group), k))
    terms = [log_ratios_N[list(members)].sum().exp() * value_of(group, members, value) for members in subsets]
    return torch.stack(terms).sum() / len(subsets)


def differentiated(group: Group, value: Value, k: int, log_ratios_N: Tensor) -> Tensor:
    """dJ / dlog rho."""
    log_ratios_N = log_ratios_N.clone().requires_grad_()
    (gradient_N,) = torch.autograd.grad(enumerated(group, value, k, log_ratios_N), log_ratios_N)
    return gradient_N


def advantages(group: Group, value: Value, k: int, ratios: list[float]) -> tuple[list[float], list[float]]:
    """A_i = E[f | i in I] - E[f | i not in I], and E pi_i."""
    rewards, _, behaviours = group
    weighted = [
        (
            members,
            prod(ratios[i] for i in members),
            value([rewards[i] for i in members], [behaviours[i] for i in members]),
        )
        for members in combinations(present(group), k)
    ]
    differences, shares = [0.0] * len(rewards), [0.0] * len(rewards)
    for i in present(group):
        means = []
        for is_in in (True, False):
            chosen = [(w, f) for members, w, f in weighted if (i in members) == is_in]
            means.append(sum(w * f for w, f in chosen) / sum(w for w, _ in chosen))
        differences[i] = means[0] - means[1]
        shares[i] = sum(w for members, w, _ in weighted if i in members) / len(weighted)
    return differences, shares


@pytest.mark.parametrize(("group", "objective", "value"), CASES)
def test_values_and_plain_credits_are_the_enumerated_mean_and_its_derivative(
    group: Group, objective: SubsetObjective, value: Value
) -> None:
    rewards_PN, log_ratios_PN, behaviours_PN = tensors(group)
    k = objective.k
    expected = enumerated(group, value, k, log_ratios_PN[0])
    torch.testing.assert_close(objective.value(rewards_PN, log_ratios_PN, behaviours_PN)[0], expected, **EXACT)
    off_policy_PN = ExactRatios(plain(objective), None)(rewards_PN, log_ratios_PN, behaviours_PN)
    torch.testing.assert_close(off_policy_PN[0], differentiated(group, value, k, log_ratios_PN[0]), **EXACT)
    ones_PN = torch.zeros_like(log_ratios_PN)
    on_policy_PN = plain(objective)(rewards_PN, log_ratios_PN, behaviours_PN)
    torch.testing.assert_close(on_policy_PN[0], differentiated(group, value, k, ones_PN[0]), **EXACT)


@pytest.mark.parametrize(("group", "objective", "value"), CENTRED_CASES)
def test_centred_credits_and_tempered_advantages_are_differences_of_enumerated_means(
    group: Group, objective: SubsetObjective, value: Value
) -> None:
    rewards_PN, log_ratios_PN, behaviours_PN = tensors(group)
    n, k, ratios = len(present(group)), objective.k, group[1]

    def close(actual_PN: Tensor, expected: list[float]) -> None:
        torch.testing.assert_close(actual_PN[0], torch.tensor(expected, dtype=torch.float64), **EXACT)

    differences, shares = advantages(group, value, k, ratios)
    exact_PN = ExactRatios(objective, None)(rewards_PN, log_ratios_PN, behaviours_PN)
    close(exact_PN, [share * a for share, a in zip(shares, differences, strict=True)])
    untempered_PN = TemperedRatios(objective, 0.0)(rewards_PN, log_ratios_PN, behaviours_PN)
    close(untempered_PN, [k / n * a for a in differences])
    on_policy, _ = advantages(group, value, k, [1.0] * len(ratios))
    close(objective(rewards_PN, log_ratios_PN, behaviours_PN), [k / n * a for a in on_policy])
    close(TemperedRatios(objective, 1.0)(rewards_PN, log_ratios_PN, behaviours_PN), [k / n * a for a in on_policy])
    tempered = TemperedRatios(objective, 0.7)
    alpha = tempered.tempering(rewards_PN, log_ratios_PN).item()
    partly, _ = advantages(group, value, k, [rho**alpha for rho in ratios])
    close(tempered(rewards_PN, log_ratios_PN, behaviours_PN), [k / n * a for a in partly])
    ones_PN = torch.zeros_like(log_ratios_PN)
    for form in (ExactRatios(objective), TemperedRatios(objective)):
        torch.testing.assert_close(
            form(rewards_PN, ones_PN, behaviours_PN), objective(rewards_PN, ones_PN, behaviours_PN), **EXACT
        )


@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_the_value_has_the_plain_credits_as_its_derivative_by_finite_differences(number: int) -> None:
    rewards_PN, log_ratios_PN, behaviours_PN = tensors(GROUPS[number])

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx, log_ratios_PN: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            ctx.save_for_backward(log_ratios_PN)
            return objective.value(rewards_PN, log_ratios_PN, behaviours_PN)

        @staticmethod
        def backward(ctx, *gradients_P: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            return gradients_P[0].unsqueeze(-1) * form(rewards_PN, ctx.saved_tensors[0], behaviours_PN)

    for objective, _ in cases(min(3, len(present(GROUPS[number])))):
        form = ExactRatios(plain(objective), None)
        assert torch.autograd.gradcheck(Value.apply, log_ratios_PN.clone().requires_grad_())


@pytest.mark.parametrize("group", GROUPS)
def test_special_cases_are_the_objectives_that_have_them_in_closed_form(group: Group) -> None:
    rewards_PN, log_ratios_PN, behaviours_PN = tensors(group)
    n = len(present(group))
    for k in range(1, n):
        for best in (TopMMean(k, 1), SubsetQuantile(k, 1.0), CVaR(k, 1 / k), DistinctMaxAtK(k, 0.0)):
            actual = [
                form(rewards_PN, log_ratios_PN, behaviours_PN)
                for form in (best, ExactRatios(best, 2.0), TemperedRatios(best, 0.5), plain(best))
            ]
            expected: list[Objective] = [
                MaxAtK(k),
                ExactMaxAtK(k, ratio_clip=2.0),
                SetAdvantage(k, 0.5),
                MaxAtK(k, "none"),
            ]
            for credits_PN, objective in zip(actual, expected, strict=True):
                torch.testing.assert_close(credits_PN, objective(rewards_PN, log_ratios_PN), **EXACT)
            values_P = best.value(rewards_PN, torch.zeros_like(rewards_PN), behaviours_PN)
            torch.testing.assert_close(values_P, max_at_k(rewards_PN, [k])[:, 0], **EXACT)
        mean_PN = TopMMean(k, k)(rewards_PN, log_ratios_PN)
        torch.testing.assert_close(mean_PN, RLOO()(rewards_PN, log_ratios_PN), **EXACT)


def test_one_right_behaviour_is_worth_having_a_right_one_and_no_more() -> None:
    is_right_PN = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]])
    behaviours_PN = torch.tensor([[4, 0, 4, 1, 0, 4]])
    credits_PN = DistinctMaxAtK(3, 0.5)(is_right_PN, torch.zeros(1, 6), behaviours_PN)
    torch.testing.assert_close(credits_PN, 1.5 * MaxAtK(3)(is_right_PN, torch.zeros(1, 6)), **EXACT)


def test_a_rare_right_behaviour_is_credited_above_a_common_one_and_unknown_ones_below() -> None:
    rewards_PN = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    behaviours_PN = torch.tensor([[0, 0, 0, 1, -1, 2, 3]])
    credits_N = DistinctMaxAtK(2)(rewards_PN, torch.zeros(1, 7), behaviours_PN)[0]
    assert credits_N[3] > credits_N[0] > credits_N[4] > credits_N[5]
    assert abs(credits_N.sum()) < 1e-12


@pytest.mark.parametrize("least", [0.0, 0.5, 1.0])
def test_tempered_credits_stay_within_the_range_of_the_value_at_wild_ratios(least: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_PN = torch.randint(0, 3, (200, 8), generator=generator).double() / 2
    behaviours_PN = torch.randint(-1, 5, (200, 8), generator=generator)
    log_ratios_PN = 30 * torch.randn(200, 8, generator=generator)
    range_P1 = rewards_PN.amax(1, keepdim=True) - rewards_PN.amin(1, keepdim=True)
    for k in (1, 3, 7):
        bounds_PN = [
            (TopMMean(k, max(1, k // 2)), k / 8 * range_P1),
            (CVaR(k, 0.4, "lower"), k / 8 * range_P1),
            (SubsetQuantile(k, 0.4), k / 8 * range_P1),
            (DistinctMaxAtK(k, 0.3, correct_at=0.5), k / 8 * (range_P1 + 0.3)),
        ]
        for objective, bound_P1 in bounds_PN:
            credits_PN = TemperedRatios(objective, least)(rewards_PN, log_ratios_PN, behaviours_PN)
            assert credits_PN.isfinite().all()
            assert (credits_PN.abs() <= bound_P1 * (1 + 1e-9)).all(), objective


@pytest.mark.parametrize("k", [1, 64, 127])
def test_large_groups_agree_with_sums_over_hypergeometric_counts(k: int) -> None:
    n, size = 128, 40  # the first 40 samples are right and behave alike, the next 10 behave otherwise
    rewards_PN = torch.zeros(1, n, dtype=torch.float64)
    rewards_PN[0, : size + 10] = 1.0
    behaviours_PN = torch.zeros(1, n, dtype=torch.int64)
    behaviours_PN[0, size:] = 1
    expected = 3 - comb(n - size - 10, k) / comb(n, k) - sum(comb(n - s, k) / comb(n, k) for s in (size, 10))
    values_P = DistinctMaxAtK(k, 1.0).value(rewards_PN, torch.zeros_like(rewards_PN), behaviours_PN)
    assert values_P.item() == pytest.approx(expected, rel=1e-12)
    m = max(1, k // 3)
    top = sum(
        min(m, ones) / m * comb(size + 10, ones) * comb(n - size - 10, k - ones) / comb(n, k) for ones in range(k + 1)
    )
    values_P = TopMMean(k, m).value(rewards_PN, torch.zeros_like(rewards_PN))
    assert values_P.item() == pytest.approx(top, rel=1e-12)


def test_a_common_factor_of_all_ratios_moves_only_the_normaliser_in_a_large_group() -> None:
    generator = torch.Generator().manual_seed(3)
    rewards_PN = torch.randint(0, 4, (2, 256), generator=generator) / 3
    behaviours_PN = torch.randint(0, 9, (2, 256), generator=generator)
    log_ratios_PN = torch.randn(2, 256, generator=generator, dtype=torch.float64)
    for objective in (TopMMean(20, 5), DistinctMaxAtK(20, 0.3)):
        form = ExactRatios(objective, None)
        credits_PN = form(rewards_PN, log_ratios_PN, behaviours_PN)
        moved_PN = form(rewards_PN, log_ratios_PN + 0.25, behaviours_PN)
        scale = credits_PN.abs().max().item()
        torch.testing.assert_close(
            moved_PN / torch.tensor(5.0).double().exp(), credits_PN, rtol=0.0, atol=1e-10 * scale
        )


def test_values_of_groups_that_lost_too_many_are_unknown() -> None:
    rewards_PN = torch.tensor([[1.0, nan, nan], [1.0, 0.0, nan], [nan, nan, nan]])
    for objective in (TopMMean(2, 1), DistinctMaxAtK(2)):
        values_P = objective.value(rewards_PN, torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.int64))
        assert values_P.isnan().tolist() == [True, False, True]


def test_mixtures_and_stages_pass_behaviours_to_those_that_ask_for_them() -> None:
    rewards_PN, log_ratios_PN, behaviours_PN = tensors(GROUPS[3])
    parts: list[Objective] = [MaxAtK(2), DistinctMaxAtK(3), TopMMean(3, 2)]
    mixture = WeightedObjectives(parts, [1.0, 2.0, 3.0])
    assert needs_behaviours(mixture)
    assert not needs_behaviours(WeightedObjectives([parts[0], parts[2]], [1.0, 1.0]))
    expected_PN = (
        MaxAtK(2)(rewards_PN, log_ratios_PN)
        + 2 * DistinctMaxAtK(3)(rewards_PN, log_ratios_PN, behaviours_PN)
        + 3 * TopMMean(3, 2)(rewards_PN, log_ratios_PN)
    )
    torch.testing.assert_close(mixture(rewards_PN, log_ratios_PN, behaviours_PN), expected_PN, **EXACT)
    staged = Staged([MaxAtK(2), DistinctMaxAtK(3)], [0.0, 0.5])
    assert needs_behaviours(staged)
    assert not needs_behaviours(objective_at(staged, 0.2))
    check_group_size(staged, 6)
    with pytest.raises(ValueError, match=r"`objective.k` is 3, but `num_completions` is 2"):
        check_group_size(WeightedObjectives([parts[1]], [1.0]), 2)


def test_tempering_is_logged_for_tempered_subset_objectives_too() -> None:
    rewards_PN, log_ratios_PN, _ = tensors(GROUPS[2])
    alone_P = SetAdvantage(2, 0.7).tempering(rewards_PN, log_ratios_PN)
    alpha_P = tempering(TemperedRatios(TopMMean(2, 2), 0.7), rewards_PN, log_ratios_PN)
    assert alpha_P is not None
    assert alpha_P.tolist() == alone_P.tolist()
    assert alone_P.item() < 1.0
    assert tempering(TopMMean(2, 2), rewards_PN, log_ratios_PN) is None


def test_a_group_whose_behaviours_differ_is_not_idle_though_its_rewards_are_equal() -> None:
    rewards_PN = torch.ones(3, 4)
    facts = GroupFacts(behaviours_PN=torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, -1, -1, 0]]))
    assert is_idle(DistinctMaxAtK(2), rewards_PN, facts).tolist() == [True, False, False]
    assert is_idle(MaxAtK(2), rewards_PN, facts).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RankWeighted(0, []), "`k` is 0"),
        (lambda: RankWeighted(2, [1.0]), "`weights` has 1 numbers, must have `k`"),
        (lambda: RankWeighted(1, [nan]), "`weights` is .* must be finite"),
        (lambda: TopMMean(2, 3), "`m` is 3, must be between 1 and `k`"),
        (lambda: SubsetQuantile(2, 1.5), r"`q` is 1\.5"),
        (lambda: CVaR(2, 0.0), r"`share` is 0\.0"),
        (lambda: DistinctMaxAtK(2, -0.1), r"`weight` is -0\.1"),
        (lambda: DistinctMaxAtK(2, correct_at=nan), "`correct_at` is nan"),
        (lambda: ExactRatios(TopMMean(2, 1), 1.0), r"`ratio_clip` is 1\.0"),
        (lambda: ExactRatios(MaxAtK(2)), "is MaxAtK, must be a subset objective"),  # type: ignore[arg-type]
        (lambda: TemperedRatios(TopMMean(2, 1), 2.0), r"`min_effective_fraction` is 2\.0"),
        (lambda: TemperedRatios(TopMMean(2, 1, "none")), "must be centred"),
        (lambda: TopMMean(2, 1)(torch.zeros(1, 2), torch.zeros(1, 2)), "are both 2: baseline `centred`"),
        (lambda: TopMMean(3, 1)(torch.zeros(1, 2), torch.zeros(1, 2)), "`objective.k` is 3"),
        (
            lambda: DistinctMaxAtK(1)(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.int64)),
            "behaviours have shape",
        ),
        (lambda: DistinctMaxAtK(1)(torch.zeros(1, 2), torch.zeros(1, 2)), "DistinctMaxAtK needs `behaviours_PN`"),
    ],
)
def test_degenerate_choices_are_refused_by_name(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
