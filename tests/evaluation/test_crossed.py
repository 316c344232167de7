"""The crossed test against scipy's t-test and against simulated worlds without a difference."""

import math

import numpy as np
import pytest
from scipy import stats

from maxk_lightning.evaluation.crossed import crossed_test


def draw(rng: np.random.Generator, shape: tuple[int, int], problem: float, seed: float, rest: float) -> np.ndarray:
    """Differences with mean 0 and these standard deviations."""
    parts = (
        problem * rng.normal(size=(shape[0], 1)),
        seed * rng.normal(size=(1, shape[1])),
        rest * rng.normal(size=shape),
    )
    return parts[0] + parts[1] + parts[2]


def test_one_seed_is_the_paired_t_test() -> None:
    differences_P1 = np.random.default_rng(0).normal(0.1, 0.5, (40, 1))
    expected = stats.ttest_1samp(differences_P1[:, 0], 0.0)
    test = crossed_test(differences_P1)
    assert test.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert (test.low, test.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-10)
    assert test.degrees_of_freedom == pytest.approx(39)


def test_only_seeds_differ_is_the_t_test_over_seeds() -> None:
    of_seed_S = np.array([0.3, -0.1, 0.2, 0.4, 0.1])
    test = crossed_test(np.tile(of_seed_S, (30, 1)))
    assert test.p_value == pytest.approx(stats.ttest_1samp(of_seed_S, 0.0).pvalue, rel=1e-10)
    assert test.degrees_of_freedom == pytest.approx(4)


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("spread", [(1.0, 0.0, 1.0), (0.3, 0.5, 1.0), (1.0, 0.3, 0.3), (0.0, 0.0, 1.0)])
def test_rejects_at_most_one_in_twenty_worlds_without_a_difference(
    spread: tuple[float, float, float], num_seeds: int
) -> None:
    rng = np.random.default_rng(1)
    p_values = [crossed_test(draw(rng, (50, num_seeds), *spread)).p_value for _ in range(600)]
    # 5 %, and four standard errors of 600 tries.
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 600)


def test_a_test_over_problem_means_would_be_fooled_by_seeds() -> None:
    rng = np.random.default_rng(1)
    worlds = [draw(rng, (50, 5), 0.3, 0.5, 1.0) for _ in range(200)]
    assert np.mean([stats.ttest_1samp(world.mean(axis=1), 0.0).pvalue < 0.05 for world in worlds]) > 0.3


def test_finds_a_large_difference() -> None:
    rng = np.random.default_rng(2)
    assert np.mean([crossed_test(0.5 + draw(rng, (50, 5), 0.5, 0.1, 0.5)).p_value < 0.05 for _ in range(200)]) > 0.95


def test_degrees_of_freedom_are_at_least_those_of_the_seeds() -> None:
    rng = np.random.default_rng(3)
    tests = [crossed_test(draw(rng, (50, 2), 0.1, 0.1, 1.0)) for _ in range(200)]
    assert min(test.degrees_of_freedom for test in tests) == 1


def test_equal_differences() -> None:
    assert crossed_test(np.zeros((3, 2))).p_value == 1.0
    constant = crossed_test(np.full((3, 2), 0.25))
    assert (constant.low, constant.high, constant.p_value) == (0.25, 0.25, 0.0)


def test_one_problem_says_nothing() -> None:
    assert math.isnan(crossed_test(np.array([[0.1, 0.2]])).p_value)


@pytest.mark.parametrize("wrong", [np.zeros((0, 2)), np.zeros(3), np.array([[math.nan, 0.0]])])
def test_refuses_what_is_no_table(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="differences must be finite"):
        crossed_test(wrong)
