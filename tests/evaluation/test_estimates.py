"""Curves against enumeration of subsets."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxk_lightning.evaluation.estimates import CORRECT_AT, Metric, estimates, ladder, per_problem
from tests.support.examples import examples

REWARDS = {"a": [0.0, 0.5, 1.0, 0.25, 0.5], "b": [1.0, 1.0, 0.0], "c": [0.1], "d": []}


def enumerated(group: list[float], k: int, metric: Metric) -> float:
    rewards = group if metric == "max_at_k" else [float(reward >= CORRECT_AT) for reward in group]
    subsets = list(combinations(rewards, k))
    return math.fsum(map(max, subsets)) / len(subsets) if subsets else math.nan


@pytest.mark.parametrize("metric", ["max_at_k", "pass_at_k"])
def test_values_of_uneven_groups_match_enumeration(metric: Metric) -> None:
    ks = [1, 2, 3, 5]
    expected = [[enumerated(group, k, metric) for k in ks] for group in REWARDS.values()]
    np.testing.assert_allclose(per_problem(REWARDS, metric, ks), expected, atol=1e-10)


@pytest.mark.parametrize("metric", ["max_at_k", "pass_at_k"])
def test_curves_average_the_problems_that_have_k_samples(metric: Metric) -> None:
    points = {point.k: point for point in estimates(REWARDS, metric)}
    assert list(points) == [1, 2, 4, 5]
    for k, num_problems in {1: 3, 2: 2, 4: 1, 5: 1}.items():
        values = [enumerated(group, k, metric) for group in REWARDS.values() if len(group) >= k]
        assert points[k].value == pytest.approx(sum(values) / len(values), abs=1e-10)
        assert points[k].num_problems == num_problems
        assert (points[k].low is None) == (num_problems == 1)
    assert points[1].low is not None
    assert points[1].high is not None
    assert points[1].low <= points[1].value <= points[1].high


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.7, 1.0]), min_size=1, max_size=9), min_size=1, max_size=4))
def test_curves_never_pass_n_nor_leave_the_range_of_the_rewards(groups: list[list[float]]) -> None:
    rewards = {str(i): group for i, group in enumerate(groups)}
    points = estimates(rewards, "max_at_k")
    assert points[-1].k == max(map(len, groups))
    assert all(0.0 <= point.value <= max(map(max, groups)) + 1e-12 for point in points)


def test_256_samples_agree_with_binomials_in_exact_arithmetic() -> None:
    group = [float(i % 7 == 0) for i in range(256)]
    num_correct = int(sum(group))
    for point in estimates({"a": group}, "pass_at_k"):
        exact = 1 - math.comb(256 - num_correct, point.k) / math.comb(256, point.k)
        assert point.value == pytest.approx(exact, abs=1e-12)


def test_the_ladder_ends_at_n() -> None:
    assert ladder(256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert ladder(100) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert ladder(1) == [1]
    assert ladder(0) == []
