"""The beta-binomial against quadrature and simulated problems whose parameters are known."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import betabinom

from maxk_lightning.evaluation.beta_binomial import AXIS, Beta, fit, refit


def simulated(a: float, b: float, totals_P: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.binomial(totals_P, rng.beta(a, b, len(totals_P))).astype(float)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_all_fail_is_the_integral(k: int) -> None:
    beta = Beta(a=np.array(0.7), b=np.array(2.5))
    moments = [quad(lambda p, power=power: p**-0.3 * (1 - p) ** (1.5 + power), 0, 1)[0] for power in (0, k)]
    assert float(beta.all_fail(k)) == pytest.approx(moments[1] / moments[0], rel=1e-6)


def test_likelihood_is_that_of_scipy_up_to_the_binomial_coefficient() -> None:
    hits = np.arange(9.0)
    own = Beta(a=np.array(0.4), b=np.array(3.0)).log_likelihood(hits, np.full(9, 8.0))
    flat = Beta(a=np.array(1.0), b=np.array(1.0)).log_likelihood(hits, np.full(9, 8.0))
    expected = betabinom.logpmf(hits, 8, 0.4, 3.0) - betabinom.logpmf(hits, 8, 1, 1)
    np.testing.assert_allclose(own - flat, expected, atol=1e-10)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.9), (2.0, 5.0), (0.15, 4.0)])
def test_parameters_are_recovered_also_from_uneven_groups(a: float, b: float) -> None:
    totals_P = np.random.default_rng(5).integers(8, 64, size=5000)
    found = fit(simulated(a, b, totals_P), totals_P.astype(float))
    assert np.log(float(found.a) / a) == pytest.approx(0.0, abs=0.1)
    assert np.log(float(found.b) / b) == pytest.approx(0.0, abs=0.1)


def test_a_fit_is_at_least_as_likely_as_every_pair_nearby() -> None:
    totals_P = np.full(40, 16.0)
    hits_P = simulated(0.5, 1.5, totals_P.astype(int))
    found = fit(hits_P, totals_P)
    best = found.log_likelihood(hits_P, totals_P).sum()
    for factor_a in (0.9, 1.0, 1.1):
        for factor_b in (0.9, 1.0, 1.1):
            other = Beta(a=found.a * factor_a, b=found.b * factor_b)
            assert other.log_likelihood(hits_P, totals_P).sum() <= best + 1e-6


def test_refits_are_fits_to_the_next_point_of_the_grid() -> None:
    hits_U, totals_U = np.arange(17.0), np.full(17, 16.0)
    weights_RU = np.random.default_rng(2).multinomial(100, np.full(17, 1 / 17), 3).astype(float)
    many = refit(hits_U, totals_U, weights_RU)
    step = np.log(AXIS[1] / AXIS[0])
    for row, weights_U in enumerate(weights_RU.astype(int)):
        one = fit(np.repeat(hits_U, weights_U), np.repeat(totals_U, weights_U))
        assert abs(np.log(many.a[row] / one.a)) <= step
        assert abs(np.log(many.b[row] / one.b)) <= step


@pytest.mark.parametrize("hits", [0.0, 16.0])
def test_problems_without_any_difference_end_at_the_limits(hits: float) -> None:
    found = fit(np.full(10, hits), np.full(10, 16.0))
    reached = 1 - found.given(np.array(hits), np.array(16.0)).all_fail(256)
    # The smallest a, 0.01, times the sum of 1 / j for j from 16 to 272, over a + b.
    assert reached == pytest.approx(hits / 16, abs=0.03)
