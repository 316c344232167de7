"""Predicted curves: exact where they must be, right on simulated problems, and their intervals hold the truth."""

from collections.abc import Sequence

import numpy as np
import pytest

from maxk_lightning.evaluation.estimates import METRICS, estimates, per_problem
from maxk_lightning.evaluation.prediction import (
    MAX_LEVELS,
    band_width,
    counted,
    levels_of,
    predict,
    predictable_ks,
    predicted_curves,
)

LEVELS = np.array([0.0, 0.25, 0.5, 1.0])


def simulated(num_problems: int, num_samples: int, seed: int) -> tuple[dict[str, list[float]], np.ndarray]:
    """Rewards of problems whose chances of every level are Dirichlet, and these chances [P, 4]."""
    rng = np.random.default_rng(seed)
    chances_PL = rng.dirichlet([1.0, 0.3, 0.1, 0.1], num_problems)
    groups = [rng.choice(LEVELS, num_samples, p=chances_L).tolist() for chances_L in chances_PL]
    return {str(place): group for place, group in enumerate(groups)}, chances_PL


def true_max_at_k(chances_PL: np.ndarray, k: int) -> np.ndarray:
    below_PL = chances_PL.cumsum(axis=1).clip(max=1.0) ** k
    return np.diff(below_PL, axis=1, prepend=0.0) @ LEVELS


def test_values_of_many_simulated_problems_are_the_true_ones() -> None:
    rewards, chances_PL = simulated(2000, 32, seed=1)
    ks = [64, 256, 1024]
    for point in predict(rewards, "max_at_k", ks, num_resamples=20).curve():
        assert point.value == pytest.approx(true_max_at_k(chances_PL, point.k).mean(), abs=0.015)
    for point in predict(rewards, "pass_at_k", ks, num_resamples=20).curve():
        assert point.value == pytest.approx((1 - (1 - chances_PL[:, -1]) ** point.k).mean(), abs=0.02)


def test_intervals_hold_the_value_of_all_such_problems() -> None:
    _, population_PL = simulated(100_000, 1, seed=0)
    expected = true_max_at_k(population_PL, 256).mean()
    is_covered = []
    for seed in range(1, 61):
        (point,) = predict(simulated(40, 16, seed)[0], "max_at_k", [256], num_resamples=200).curve()
        assert point.low is not None
        assert point.high is not None
        is_covered.append(point.low <= expected <= point.high)
    # 95 % of 60 is 57; fewer than 51 of them come once in 100 times.
    assert sum(is_covered) >= 51


@pytest.mark.parametrize("metric", METRICS)
def test_up_to_n_it_is_near_the_unbiased_estimator(metric: str) -> None:
    rewards, _ = simulated(400, 64, seed=3)
    ks = [1, 4, 16, 64]
    unbiased_K = per_problem(rewards, metric, ks).mean(axis=0)
    np.testing.assert_allclose(
        predict(rewards, metric, ks, num_resamples=10).values_PK.mean(axis=0), unbiased_K, atol=0.02
    )


@pytest.mark.parametrize(("rewards", "passed"), [([0.0, 0.0], 0.0), ([1.0, 1.0], 1.0), ([0.5, 0.5], 0.0)])
def test_equal_rewards_stay_what_they_are(rewards: list[float], passed: float) -> None:
    groups = {"a": rewards, "b": rewards}
    (point,) = predict(groups, "max_at_k", [4096]).curve()
    assert (point.value, point.low, point.high) == (rewards[0],) * 3
    (point,) = predict(groups, "pass_at_k", [4096]).curve()
    assert (point.value, point.low, point.high) == (passed,) * 3


def test_a_curve_rises_with_k_up_to_the_best_reward() -> None:
    rewards, _ = simulated(50, 8, seed=4)
    prediction = predict(rewards, "max_at_k", [16, 64, 256, 1024, 4096])
    assert (np.diff(prediction.values_PK, axis=1) >= 0).all()
    for point in prediction.curve():
        assert point.low is not None
        assert point.high is not None
        assert 0.0 <= point.low <= point.value <= point.high <= 1.0


def test_ties_and_uneven_groups_are_counted_level_by_level() -> None:
    samples = counted({"a": [0.0, 0.5, 0.5, 1.0], "b": [0.5], "missing": []}, "max_at_k")
    assert samples.lowest == 0.0
    assert samples.totals_P.tolist() == [4.0, 1.0]
    assert [(step, hits_P.tolist()) for step, hits_P in samples.steps] == [(0.5, [3.0, 1.0]), (0.5, [1.0, 0.0])]


def test_more_samples_of_one_problem_change_little_for_the_others() -> None:
    rewards, _ = simulated(200, 16, seed=6)
    whole = predict(rewards, "max_at_k", [64], num_resamples=10).values_PK[:, 0]
    cut = {id_: group[: 16 if place % 2 else 12] for place, (id_, group) in enumerate(rewards.items())}
    uneven = predict(cut, "max_at_k", [64], num_resamples=10).values_PK[:, 0]
    np.testing.assert_allclose(uneven[1::2], whole[1::2], atol=0.03)


def test_many_distinct_rewards_become_few_levels() -> None:
    rewards = np.random.default_rng(0).random(1000)
    levels = levels_of(rewards)
    assert len(levels) == MAX_LEVELS
    assert (levels[0], levels[-1]) == (rewards.min(), rewards.max())
    groups = {str(row): group.tolist() for row, group in enumerate(rewards.reshape(50, 20))}
    expected = per_problem(groups, "max_at_k", [1]).mean()
    assert predict(groups, "max_at_k", [1], num_resamples=10).values_PK.mean() == pytest.approx(expected, abs=0.02)


def test_curves_begin_above_the_largest_group() -> None:
    rewards = {"a": [0.0, 1.0, 0.0], "b": [0.0] * 5, "c": []}
    assert predictable_ks(5, 16) == [8, 16]
    curves = predicted_curves(rewards, 16)
    assert [[point.k for point in curves[metric]] for metric in METRICS] == [[8, 16], [8, 16]]
    assert curves["max_at_k"][0].num_problems == 2
    for nothing in (predicted_curves(rewards, 5), predicted_curves(rewards, 0), predicted_curves({"a": []}, 9)):
        assert nothing == {"max_at_k": (), "pass_at_k": ()}
    (lonely,) = predicted_curves({"a": [0.0, 1.0]}, 4)["max_at_k"]
    assert lonely.low is None
    with pytest.raises(ValueError, match="no reward"):
        predict({"a": []}, "max_at_k", [4])


def widths(groups: dict[str, list[float]], ks: Sequence[int]) -> list[float]:
    measured = {point.k: point for point in estimates(groups, "max_at_k")}
    predicted = {point.k: point for point in predicted_curves(groups, ks[-1])["max_at_k"]}
    points = [(measured | predicted)[k] for k in ks]
    return [point.high - point.low for point in points if point.high is not None and point.low is not None]


def test_the_width_of_a_band_is_that_of_its_widest_interval() -> None:
    groups, _ = simulated(30, 8, seed=8)
    assert band_width(groups, 32) == max(widths(groups, [1, 2, 4, 8, 16, 32]))
    assert band_width(groups, 4) == max(widths(groups, [1, 2, 4]))
    assert band_width({"a": [0.0, 1.0]}, 8) == float("inf")
    assert band_width({}, 8) == float("inf")
