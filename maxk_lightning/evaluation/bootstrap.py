"""Bootstrap over problems.

Shapes: P problems, R resamples, K columns (values of k) that share every resample.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]
NUM_RESAMPLES = 9999
CHUNK_ELEMENTS = 4_000_000
"Number of resampling counts that are alive at a time; bounds the memory."


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Means of resampled problems."""

    means_RK: Floats
    "Means, one row per resample."
    values_PK: Floats
    "Values that were resampled."

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """Compute the bias-corrected and accelerated interval of the mean (Efron 1987): low_K and high_K.

        A column whose values are all equal has the interval [value, value]; fewer than two problems have none (NaN).
        """
        mean_K = self.values_PK.mean(axis=0)
        if len(self.values_PK) < 2:
            return np.full_like(mean_K, np.nan), np.full_like(mean_K, np.nan)
        bias_K = self._bias(mean_K)
        acceleration_K = self._acceleration(mean_K)
        bounds = []
        for tail in ((1 - level) / 2, (1 + level) / 2):
            shifted_K = bias_K + ndtri(tail)
            share_K = ndtr(bias_K + shifted_K / (1 - acceleration_K * shifted_K))
            columns = [np.quantile(column, share) for column, share in zip(self.means_RK.T, share_K, strict=True)]
            bounds.append(np.array(columns))
        return bounds[0], bounds[1]

    def p_value(self) -> Floats:
        """Compute the two-sided p-value, per column, of a mean of 0: resamples are shifted to obey it."""
        mean_K = self.values_PK.mean(axis=0)
        # A mean of equal numbers need not be that number to the last bit: such noise must not count as less extreme.
        is_as_extreme_RK = np.abs(self.means_RK - mean_K) >= np.abs(mean_K) - 1e-12
        return np.asarray((1 + is_as_extreme_RK.sum(axis=0)) / (1 + len(self.means_RK)))

    def _bias(self, mean_K: Floats) -> Floats:
        num_resamples = len(self.means_RK)
        below_K = (self.means_RK < mean_K).mean(axis=0) + 0.5 * (self.means_RK == mean_K).mean(axis=0)
        return np.asarray(ndtri(below_K.clip(0.5 / num_resamples, 1 - 0.5 / num_resamples)))

    def _acceleration(self, mean_K: Floats) -> Floats:
        """Skewness / (6 sqrt(P)): what the jackknife of a mean amounts to."""
        deviations_PK = self.values_PK - mean_K
        squares_K = (deviations_PK**2).sum(axis=0)
        is_spread_K = squares_K > 0
        return np.asarray((deviations_PK**3).sum(axis=0) / np.where(is_spread_K, 6 * squares_K**1.5, 1.0))


def bootstrap(values_PK: Floats, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Bootstrap:
    """Draw problems with replacement; the same draws serve all columns, so their differences are meaningful too."""
    rng = np.random.default_rng(seed)
    num_problems = len(values_PK)
    chunk = max(1, CHUNK_ELEMENTS // max(1, num_problems))
    means = []
    for start in range(0, num_resamples, chunk):
        counts_RP = resample(rng, num_problems, min(chunk, num_resamples - start))
        means.append(counts_RP @ values_PK / num_problems)
    return Bootstrap(means_RK=np.concatenate(means), values_PK=values_PK)


def resample(rng: np.random.Generator, num_problems: int, num_resamples: int) -> Floats:
    """Draw how often each problem is in each resample: counts_RP."""
    return rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), num_resamples).astype(np.float64)
