"""How often a sample of a problem succeeds, as a beta distribution over problems: fit, and predictions for k samples.

Shapes: P problems, M pairs of parameters. Arguments that are [P, 1] and [M] broadcast to [P, M].
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln

from maxk_lightning.evaluation.bootstrap import Floats

AXIS = np.geomspace(0.01, 100.0, 31)
"Values of each parameter that a fit begins from: neighbours differ by 36 %, less than the error of either."
LIMITS = (np.log(AXIS[0]), np.log(AXIS[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beta:
    """Beta distributions of the chance p that one sample succeeds; parameters of one, or of many [M]."""

    a: Floats
    "Pseudo-count of successes, above 0; how many problems are almost never solved depends on it."
    b: Floats
    "Pseudo-count of failures, above 0."

    def log_likelihood(self, hits: Floats, totals: Floats) -> Floats:
        """Compute the log-probability of `hits` successes among `totals` samples, without the binomial coefficient."""
        return np.asarray(betaln(self.a + hits, self.b + totals - hits) - betaln(self.a, self.b))

    def given(self, hits: Floats, totals: Floats) -> "Beta":
        """Return the posterior of a problem with `hits` successes among `totals` samples."""
        return Beta(a=self.a + hits, b=self.b + totals - hits)

    def all_fail(self, k: int) -> Floats:
        """Compute E[(1 - p)^k], the probability that k fresh samples all fail; its complement is pass@k.

        >>> Beta(a=np.array(1.0), b=np.array(1.0)).all_fail(9).round(3)
        np.float64(0.1)
        """
        return np.asarray(np.exp(betaln(self.a, self.b + k) - betaln(self.a, self.b)))


def grid() -> Beta:
    """Return all pairs of `AXIS`, M = 961."""
    a, b = np.meshgrid(AXIS, AXIS, indexing="ij")
    return Beta(a=a.ravel(), b=b.ravel())


def fit(hits_P: Floats, totals_P: Floats) -> Beta:
    """Fit the beta-binomial by maximum likelihood (arXiv:2510.05197), from the best pair of the grid.

    Totals may differ between problems, and need not be fixed in advance. Parameters stay in the range of `AXIS`: where
    all problems are alike, or each is always or never solved, the likelihood has no maximum inside it.
    """
    pairs = grid()
    totals = pairs.log_likelihood(hits_P[:, None], totals_P[:, None]).sum(axis=0)
    best = int(totals.argmax())

    def loss(logs: Floats) -> float:
        a, b = np.exp(logs)
        return -float(Beta(a=a, b=b).log_likelihood(hits_P, totals_P).sum())

    start = np.log([pairs.a[best], pairs.b[best]])
    a, b = np.exp(minimize(loss, start, method="L-BFGS-B", bounds=[LIMITS, LIMITS]).x)
    return Beta(a=np.asarray(a), b=np.asarray(b))


def refit(hits_U: Floats, totals_U: Floats, weights_RU: Floats) -> Beta:
    """Fit R samples of problems at once, each to the nearest pair of the grid: parameters [R].

    Args:
        hits_U: Successes of each kind of problem.
        totals_U: Its samples.
        weights_RU: Problems of each kind in every sample.
    """
    pairs = grid()
    best_R = (weights_RU @ pairs.log_likelihood(hits_U[:, None], totals_U[:, None])).argmax(axis=1)
    return Beta(a=pairs.a[best_R], b=pairs.b[best_R])
