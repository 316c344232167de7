"""Paired tests against scipy, by simulation under the null, and with a planted difference."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from maxk_lightning.evaluation.estimates import per_problem
from maxk_lightning.evaluation.paired import (
    best_against_second,
    correct,
    holm,
    paired_columns,
    paired_tests,
    rank_biserial,
    wilcoxon_p,
)
from maxk_lightning.evaluation.runs import Run
from tests.support.builders import make_run, make_samples

KS = [1, 2, 4, 8, 16, 32]


def draw_rewards(rng: np.random.Generator, abilities: np.ndarray, num_samples: int = 32) -> dict[str, list[float]]:
    """Rewards in {0, 1/4, ..., 1}: several samples per problem, problems of very different difficulty."""
    return {str(i): (rng.binomial(4, ability, size=num_samples) / 4).tolist() for i, ability in enumerate(abilities)}


def change(rng: np.random.Generator, gain: float) -> np.ndarray:
    """Differences of two evaluations of 60 problems; without a gain both come from the same policy."""
    abilities = rng.beta(0.6, 1.2, size=60)
    better = np.clip(abilities + gain, 0, 1)
    before, after = (per_problem(draw_rewards(rng, each), "max_at_k", KS) for each in (abilities, better))
    return np.round(after - before, 12)


@pytest.mark.parametrize(("num_pairs", "most"), [(25, 4), pytest.param(300, 25, marks=pytest.mark.slow)])
def test_under_the_null_the_corrected_tests_reject_at_most_at_their_level(num_pairs: int, most: int) -> None:
    """Pairs of equal policies; any rejection at any k counts. More than `most` at level 0.05 has probability < 0.01."""
    rng = np.random.default_rng(0)
    wilcoxon, resampled = 0, 0
    for _ in range(num_pairs):
        tests = correct(paired_columns(("a", "b"), KS, change(rng, 0.0)))
        wilcoxon += min(test.wilcoxon_holm for test in tests) < 0.05
        resampled += min(test.bootstrap_holm for test in tests) < 0.05
    assert wilcoxon <= most
    assert resampled <= most


def test_without_correction_the_level_would_not_hold() -> None:
    """The test above can fail: the smallest of six raw p-values is below 0.05 more often than one in twenty."""
    rng = np.random.default_rng(1)
    smallest = [stats.uniform.rvs(size=len(KS), random_state=rng) for _ in range(1000)]
    assert np.mean([p.min() < 0.05 for p in smallest]) > 0.2
    assert np.mean([min(holm(p.tolist())) < 0.05 for p in smallest]) == pytest.approx(0.05, abs=0.02)


def test_a_planted_difference_is_found_and_has_the_right_sign() -> None:
    rng = np.random.default_rng(2)
    for sign in (1, -1):
        tests = correct(paired_columns(("a", "b"), KS, sign * change(rng, 0.1)))
        assert tests[0].wilcoxon_holm < 0.01
        assert tests[0].bootstrap_holm < 0.01
        assert np.sign(tests[0].difference) == np.sign(tests[0].effect_size) == sign
        assert min(abs(tests[0].low), abs(tests[0].high)) > 0.0
        assert tests[0].low <= tests[0].difference <= tests[0].high


def test_wilcoxon_and_effect_agree_with_textbook_formulas() -> None:
    values = np.array([0.3, -0.1, 0.2, 0.2, 0.0, 0.5, -0.05, 0.4])
    moved = values[values != 0]
    ranks = stats.rankdata(np.abs(moved))
    gains, losses = ranks[moved > 0].sum(), ranks[moved < 0].sum()
    assert rank_biserial(values) == pytest.approx((gains - losses) / (gains + losses))
    assert wilcoxon_p(values) == pytest.approx(stats.wilcoxon(moved).pvalue)
    assert wilcoxon_p(-values) == pytest.approx(wilcoxon_p(values))


def test_exact_wilcoxon_matches_enumeration_of_all_signs() -> None:
    """Five distinct changes: 2^5 equally likely signs, so the p-value can be counted by hand."""
    values = np.array([0.1, 0.2, -0.3, 0.4, 0.5])
    ranks = np.arange(1, 6)
    sums = [ranks[[bool(mask >> bit & 1) for bit in range(5)]].sum() for mask in range(32)]
    lower = ranks[values < 0].sum()
    assert wilcoxon_p(values) == pytest.approx(2 * np.mean([total <= lower for total in sums]))


def test_nothing_changed_is_no_evidence() -> None:
    (test,) = correct(paired_columns(("a", "b"), [1], np.zeros((20, 1))))
    assert (test.wilcoxon_holm, test.bootstrap_holm, test.effect_size) == (1.0, 1.0, 0.0)
    assert (test.num_gained, test.num_lost) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_holm_matches_its_definition(seed: int) -> None:
    p_values = np.random.default_rng(seed).uniform(0, 0.2, size=7)
    for level in (0.01, 0.05, 0.1):
        rejected = set()
        for step, i in enumerate(np.argsort(p_values)):
            if p_values[i] > level / (len(p_values) - step):
                break
            rejected.add(int(i))
        assert {i for i, p in enumerate(holm(p_values.tolist())) if p <= level} == rejected


def run_of(directory: Path, rewards: dict[str, list[float | None]]) -> Run:
    return make_run(directory, make_samples(rewards))


def test_runs_are_paired_by_problem_whatever_their_order_and_size(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"x": [0.0, 1.0], "y": [0.0, 0.5], "only a": [1.0, 1.0]})
    b = run_of(tmp_path / "b", {"y": [0.5, 0.5, 0.5, 0.5], "x": [0.0, None], "only b": [0.0] * 4})
    first, second = paired_tests(a, b, "max_at_k")
    assert (first.k, first.num_problems, first.num_gained, first.num_lost) == (1, 2, 1, 1)
    assert first.difference == pytest.approx(((0.0 - 0.5) + (0.5 - 0.25)) / 2)
    # At k = 2 problem x of b has one scored sample only; y has 0.5 in both.
    assert (second.k, second.num_problems, second.difference) == (2, 1, 0.0)


def test_best_is_tested_against_second_best_at_every_k(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "steady", {str(i): [0.6, 0.6] for i in range(6)}),
        run_of(tmp_path / "wild", {str(i): [0.0, 1.0] for i in range(6)}),
        run_of(tmp_path / "poor", {str(i): [0.1, 0.1] for i in range(6)}),
    ]
    at_one, at_two = best_against_second(runs, "max_at_k")
    assert (at_one.other, at_one.baseline) == ("steady", "wild")
    assert (at_two.other, at_two.baseline) == ("wild", "steady")
    assert at_two.difference == pytest.approx(0.4)
