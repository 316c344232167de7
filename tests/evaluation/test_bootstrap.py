"""Bootstrap intervals against scipy's and against their promised coverage."""

import numpy as np
import pytest
from scipy import stats

from maxk_lightning.evaluation.bootstrap import bootstrap


@pytest.mark.parametrize("num_problems", [8, 30])
def test_bca_interval_matches_scipy(num_problems: int) -> None:
    values = np.random.default_rng(1).beta(0.3, 0.6, size=num_problems) ** 2  # skewed, like solve rates
    low_K, high_K = bootstrap(values[:, None], num_resamples=100_000).interval(0.9)
    theirs = stats.bootstrap((values,), np.mean, confidence_level=0.9, method="BCa", n_resamples=100_000, rng=2)
    # Both are Monte Carlo: a bound from 100 000 resamples wanders by about 0.3% of the interval's width.
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert low_K[0] == pytest.approx(theirs.confidence_interval.low, abs=0.012 * width)
    assert high_K[0] == pytest.approx(theirs.confidence_interval.high, abs=0.012 * width)


def test_columns_are_what_they_would_be_alone_and_the_seed_decides() -> None:
    values_PK = np.random.default_rng(3).random((30, 2))
    both = bootstrap(values_PK, seed=7, num_resamples=500).means_RK
    np.testing.assert_allclose(both[:, :1], bootstrap(values_PK[:, :1], seed=7, num_resamples=500).means_RK, atol=1e-12)
    assert not np.array_equal(both, bootstrap(values_PK, seed=8, num_resamples=500).means_RK)


def test_resampling_in_chunks_keeps_the_mean_and_its_spread() -> None:
    values = np.random.default_rng(4).random((600, 1))  # 9999 x 600 counts do not fit into one chunk
    means = bootstrap(values).means_RK[:, 0]
    assert len(means) == 9999
    error = values.std() / np.sqrt(600)
    assert means.mean() == pytest.approx(values.mean(), abs=5 * error / 100)
    assert means.std() == pytest.approx(error, rel=0.05)


def test_equal_values_have_a_point_and_one_problem_has_no_interval() -> None:
    assert np.concatenate(bootstrap(np.full((9, 1), 0.25)).interval()).tolist() == [0.25, 0.25]
    assert np.isnan(bootstrap(np.array([[0.3]])).interval()).all()


def test_intervals_cover_the_truth_at_their_level() -> None:
    """200 experiments at level 0.9: binomial spread 2.1 points, BCa loses a few with 40 skewed values."""
    rng = np.random.default_rng(5)
    values_PK = rng.beta(0.5, 1.0, size=(40, 200))
    low_K, high_K = bootstrap(values_PK, num_resamples=1999).interval(0.9)
    assert 0.82 <= ((low_K <= 1 / 3) & (high_K >= 1 / 3)).mean() <= 0.97


def test_p_values_are_uniform_without_a_difference_and_small_with_one() -> None:
    differences_PK = np.random.default_rng(6).normal(size=(60, 400))
    p_values = bootstrap(differences_PK, num_resamples=999).p_value()
    assert 0.02 <= (p_values <= 0.05).mean() <= 0.09
    assert (bootstrap(differences_PK[:, :20] + 1.0, num_resamples=999).p_value() == 0.001).all()


def test_no_difference_at_all_has_p_value_one() -> None:
    assert bootstrap(np.zeros((10, 1))).p_value().tolist() == [1.0]
