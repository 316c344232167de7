"""max@k and pass@k against brute force over subsets and exact rational arithmetic."""

from fractions import Fraction
from itertools import combinations
from math import comb, nan

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxk_lightning.estimators import max_at_k, pass_at_k, top_rank_weights
from tests.support.examples import examples

GROUPS = [
    [0.7],
    [0.2, -1.5],
    [0.0, 0.0, 0.0, 0.0],
    [1.0, 0.0, 1.0, 0.0, 0.0],
    [-3.0, 2.0, -0.5, 0.25, 3.0, 2.0],
    [0.5, 0.0, 0.5, 1.0, 0.25, 0.25, 0.0, 0.75, -0.1],
]


def mean_of_maxima(rewards: list[float], k: int) -> float:
    subsets = list(combinations(rewards, k))
    return sum(max(subset) for subset in subsets) / len(subsets)


@pytest.mark.parametrize("rewards", GROUPS)
def test_max_at_k_is_the_mean_maximum_over_all_subsets(rewards: list[float]) -> None:
    ks = list(range(1, len(rewards) + 1))
    expected = [mean_of_maxima(rewards, k) for k in ks]
    values_PK = max_at_k(torch.tensor([rewards], dtype=torch.float64), ks)
    torch.testing.assert_close(values_PK, torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_missing_samples_are_dropped_from_uneven_groups() -> None:
    rewards_PN = torch.tensor([[nan, 0.5, nan, -2.0, 1.0], [0.1, 0.2, 0.3, nan, 0.3], [nan, nan, nan, 0.4, 0.4]])
    expected = [[mean_of_maxima([r for r in row if r == r], k) for k in (1, 2)] for row in rewards_PN.tolist()]
    torch.testing.assert_close(max_at_k(rewards_PN, [1, 2]), torch.tensor(expected, dtype=torch.float64))


def test_four_thousand_samples_agree_with_exact_integers() -> None:
    n = 4096
    generator = torch.Generator().manual_seed(0)
    rewards_1N = torch.rand(1, n, dtype=torch.float64, generator=generator)
    ks = [1, 7, 512, 2048, 4095, 4096]
    ranked = [Fraction(r) for r in sorted(rewards_1N[0].tolist())]
    for k, value in zip(ks, max_at_k(rewards_1N, ks)[0].tolist(), strict=True):
        exact = sum(comb(i - 1, k - 1) * ranked[i - 1] for i in range(k, n + 1)) / comb(n, k)
        assert abs(Fraction(value) - exact) < 1e-12 * exact


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (8, 3), (200, 1), (256, 250), (1024, 5)])
def test_pass_at_k_is_the_closed_form(n: int, c: int) -> None:
    is_correct_PN = (torch.arange(n) < c).unsqueeze(0)
    ks = [k for k in (1, 2, 5, n // 2, n) if 1 <= k <= n]
    expected = [float(1 - Fraction(comb(n - c, k), comb(n, k))) for k in ks]
    expected_PK = torch.tensor([expected], dtype=torch.float64)
    torch.testing.assert_close(pass_at_k(is_correct_PN, ks), expected_PK, rtol=1e-12, atol=1e-12)


def test_rank_weights_are_a_distribution_over_the_ranks_that_can_be_largest() -> None:
    weights_PN = top_rank_weights(torch.tensor([6, 3, 2]), num_ranks=6, k=3)
    expected = [[comb(j - 1, 2) / comb(6, 3) for j in range(1, 7)], [0, 0, 1, 0, 0, 0], [0] * 6]
    torch.testing.assert_close(weights_PN, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rewards", "ks", "message"),
    [
        ([[0.1, 0.2]], [3], "k is 3, but a group has only 2 samples"),
        ([[0.1, nan], [0.1, 0.2]], [2], "only 1 samples"),
        ([[0.1, 0.2]], [0], "k is 0, must be at least 1"),
        ([[0.1, float("inf")]], [1], "finite"),
        ([0.1, 0.2], [1], "must be \\[prompts, completions\\]"),
    ],
)
def test_bad_input_is_refused(rewards: list[list[float]], ks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        max_at_k(torch.tensor(rewards), ks)


def test_pass_at_k_refuses_fractions() -> None:
    with pytest.raises(ValueError, match="binary"):
        pass_at_k(torch.tensor([[0.5, 1.0]]), [1])


def test_float64_whatever_comes_in_and_no_prompts_is_no_error() -> None:
    assert max_at_k(torch.tensor([[0.5, 1.0]], dtype=torch.bfloat16), [1]).dtype == torch.float64
    assert max_at_k(torch.zeros(0, 4), [1, 2]).shape == (0, 2)
    assert max_at_k(torch.zeros(3, 4), []).shape == (3, 0)


rewards_lists = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


@given(rewards=rewards_lists, data=st.data())
@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_properties(rewards: list[float], data: st.DataObject) -> None:
    rewards_PN = torch.tensor([rewards], dtype=torch.float64)
    ks = list(range(1, len(rewards) + 1))
    values_PK = max_at_k(rewards_PN, ks)
    shuffled = data.draw(st.permutations(rewards))
    padded_PN = torch.tensor([[nan, *shuffled, nan]], dtype=torch.float64)
    torch.testing.assert_close(max_at_k(padded_PN, ks), values_PK, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(max_at_k(3 * rewards_PN - 2, ks), 3 * values_PK - 2, rtol=1e-12, atol=1e-11)
    assert (values_PK.diff(dim=-1) >= -1e-12).all(), "max@k grows with k"
    torch.testing.assert_close(values_PK[0, [0, -1]], torch.stack([rewards_PN.mean(), rewards_PN.max()]))
