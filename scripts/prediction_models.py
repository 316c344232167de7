"""Other ways to predict max@k from fewer samples, which docs/prediction.md holds the kept one against.

Shapes: P problems, L levels of reward.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma, expit, gammaln

from maxk_lightning.evaluation.beta_binomial import LIMITS, Beta, fit
from maxk_lightning.evaluation.bootstrap import Floats
from maxk_lightning.evaluation.estimates import Metric, per_problem
from maxk_lightning.evaluation.prediction import counted

Rewards = Mapping[str, Sequence[float]]
Reach = Callable[[Floats, Floats, int], Floats]
"hits_P, totals_P, k -> the probability that the best of k reaches the level, problem by problem."


def flat(rewards: Rewards, metric: Metric, k: int) -> Floats:
    """The unbiased estimate from all samples, as if more of them brought nothing."""
    return per_problem(rewards, metric, [min(k, *map(len, rewards.values()))])[:, 0]


def plug_in(rewards: Rewards, metric: Metric, k: int) -> Floats:
    """1 - (1 - p)^k with the observed share p, level by level: what was not seen never comes."""
    return by_levels(rewards, metric, k, lambda hits_P, totals_P, k: 1 - (1 - hits_P / totals_P) ** k)


def of_fitted(rewards: Rewards, metric: Metric, k: int) -> Floats:
    """The mean over the fitted beta distributions, whatever a problem's own samples (arXiv:2510.05197)."""

    def reach(hits_P: Floats, totals_P: Floats, k: int) -> Floats:
        return np.full_like(hits_P, 1 - fit(hits_P, totals_P).all_fail(k))

    return by_levels(rewards, metric, k, reach)


def zero_inflated(rewards: Rewards, metric: Metric, k: int) -> Floats:
    """Posterior means as of the kept model, with a share of problems that can never reach the level."""

    def reach(hits_P: Floats, totals_P: Floats, k: int) -> Floats:
        beta, share = fit_zero_inflated(hits_P, totals_P)
        likelihood_P = (1 - share) * np.exp(beta.log_likelihood(hits_P, totals_P))
        is_open_P = np.where(hits_P == 0, likelihood_P / (share + likelihood_P), 1.0)
        return is_open_P * (1 - beta.given(hits_P, totals_P).all_fail(k))

    return by_levels(rewards, metric, k, reach)


def fit_zero_inflated(hits_P: Floats, totals_P: Floats) -> tuple[Beta, float]:
    """Fit the zero-inflated beta-binomial by maximum likelihood: the beta, and the share of impossible problems."""

    def parameters(x: Floats) -> tuple[Beta, float]:
        return Beta(a=np.exp(x[0]), b=np.exp(x[1])), float(expit(x[2]))

    def loss(x: Floats) -> float:
        beta, share = parameters(x)
        logs_P = np.log1p(-share) + beta.log_likelihood(hits_P, totals_P)
        return -float(np.where(hits_P == 0, np.logaddexp(logs_P, np.log(share)), logs_P).sum())

    plain = fit(hits_P, totals_P)
    starts = [np.array([np.log(a), np.log(b), -2.0]) for a, b in ((plain.a, plain.b), (1.0, 1.0))]
    bounds = [LIMITS, LIMITS, (-9.0, 9.0)]
    return parameters(min((minimize(loss, x, bounds=bounds) for x in starts), key=lambda found: found.fun).x)


def dirichlet(rewards: Rewards, metric: Metric, k: int) -> Floats:
    """Posterior means under one Dirichlet distribution over all levels, fitted by maximum likelihood."""
    samples = counted(rewards, metric)
    if not samples.steps:
        return np.full_like(samples.totals_P, samples.lowest)
    reached_PL = np.stack([samples.totals_P, *(hits_P for _, hits_P in samples.steps)], axis=1)
    counts_PL = -np.diff(reached_PL, axis=1, append=0.0)
    posterior_PL = counts_PL + fit_dirichlet(counts_PL)
    total_P1 = posterior_PL.sum(axis=1, keepdims=True)
    below_PL = posterior_PL.cumsum(axis=1)[:, :-1]
    # Sums of a Dirichlet's components are beta distributed.
    reach_PL = 1 - Beta(a=total_P1 - below_PL, b=below_PL).all_fail(k)
    return samples.lowest + reach_PL @ np.array([step for step, _ in samples.steps])


def fit_dirichlet(counts_PL: Floats) -> Floats:
    """Parameters [L] of the Dirichlet-multinomial of largest likelihood, each within the limits of `fit`."""
    totals_P = counts_PL.sum(axis=1)

    def loss(logs_L: Floats) -> tuple[float, Floats]:
        a_L = np.exp(logs_L)
        value = (gammaln(a_L.sum()) - gammaln(a_L.sum() + totals_P)).sum()
        value += (gammaln(counts_PL + a_L) - gammaln(a_L)).sum()
        slope_L = (digamma(counts_PL + a_L) - digamma(a_L)).sum(axis=0)
        slope_L += (digamma(a_L.sum()) - digamma(a_L.sum() + totals_P)).sum()
        return -float(value), -a_L * slope_L

    start_L = np.log(2 * (counts_PL.sum(axis=0) + 0.5) / counts_PL.sum()).clip(*LIMITS)
    return np.asarray(np.exp(minimize(loss, start_L, jac=True, bounds=[LIMITS] * len(start_L)).x))


def by_levels(rewards: Rewards, metric: Metric, k: int, reach: Reach) -> Floats:
    """Put max@k together from the probabilities that levels are reached."""
    samples = counted(rewards, metric)
    values_P = np.full_like(samples.totals_P, samples.lowest)
    for step, hits_P in samples.steps:
        values_P += step * reach(hits_P, samples.totals_P, k)
    return values_P


OTHERS: Mapping[str, Callable[[Rewards, Metric, int], Floats]] = {
    "flat": flat,
    "plug_in": plug_in,
    "of_fitted": of_fitted,
    "zero_inflated": zero_inflated,
    "dirichlet": dirichlet,
}
