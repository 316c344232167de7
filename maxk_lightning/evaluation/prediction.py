"""max@k and pass@k of more samples than there are, predicted from a model of how problems differ.

E[best of k] is the lowest reward plus, for every further level of reward, its step times the probability that one of k
samples reaches it. That probability is pass@k with another threshold, and every level has its own beta-binomial over
problems. docs/prediction.md says how it compares with other models and how far it was off.

Shapes: P problems, U kinds of problems (same samples, same successes), K values of k, R resamples.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maxk_lightning.evaluation.beta_binomial import Beta, fit, refit
from maxk_lightning.evaluation.bootstrap import Floats, resample
from maxk_lightning.evaluation.estimates import CORRECT_AT, LEVEL, METRICS, Estimate, Metric, estimates, ladder

PREDICTED = "predicted:"
"Metrics `predicted:max_at_k` and `predicted:pass_at_k` are curves beyond the samples."
NUM_RESAMPLES = 1000
"Fewer than for means: every one is fitted anew."
MAX_LEVELS = 32
"Levels that rewards are rounded to where there are more distinct ones."


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted values and what their intervals need."""

    ks: tuple[int, ...]
    "Values of k."
    lowest: float
    "Lowest reward."
    highest: float
    "Highest reward that a sample earned; no value is above it."
    values_PK: Floats
    "Posterior mean of max@k of every problem, given its samples."
    spreads_PK: Floats
    "Posterior standard deviation of it, at most: levels of a problem are taken to err together."
    means_RK: Floats
    "Means over resampled problems, the model fitted to each resample."
    refits_RK: Floats
    "Means over the problems themselves, under the same fits: the uncertainty of the fit alone."

    def curve(self) -> tuple[Estimate, ...]:
        """Compute means over problems, with intervals that mean the same as those of measured values.

        They cover other problems too: resampled problems with their fits, and the posterior variance of each problem,
        which means of posterior means lack. There are none below two problems.
        """
        num_problems = len(self.values_PK)
        lows_K, highs_K = np.quantile(self.resampled_RK(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        has_interval = num_problems > 1
        return tuple(
            Estimate(
                k=k,
                value=float(value),
                low=float(low) if has_interval else None,
                high=float(high) if has_interval else None,
                num_problems=num_problems,
            )
            for k, value, low, high in zip(self.ks, self.values_PK.mean(axis=0), lows_K, highs_K, strict=True)
        )

    def resampled_RK(self) -> Floats:
        """Draw means of max@k over problems like these: [R, K]."""
        num_resamples, num_problems = len(self.means_RK), len(self.values_PK)
        noise_R1 = np.random.default_rng(1).standard_normal((num_resamples, 1))
        spread_K = np.sqrt((self.spreads_PK**2).sum(axis=0)) / num_problems
        return np.asarray((self.means_RK + noise_R1 * spread_K).clip(self.lowest, self.highest))


def predictable_ks(num_samples: int, up_to: int) -> list[int]:
    """List 1, 2, 4, ... above the number of samples, up to `up_to`, which closes the list.

    >>> predictable_ks(32, 200)
    [64, 128, 200]
    """
    return [k for k in ladder(up_to) if k > num_samples]


def predicted_curves(rewards: Mapping[str, Sequence[float]], up_to: int) -> dict[Metric, tuple[Estimate, ...]]:
    """Predict max@k and pass@k above the largest number of samples of a problem, up to k = `up_to`; else empty."""
    ks = predictable_ks(max(map(len, rewards.values()), default=0), up_to)
    if not ks or not any(rewards.values()):
        return dict.fromkeys(METRICS, ())
    return {metric: predict(rewards, metric, ks).curve() for metric in METRICS}


def band_width(rewards: Mapping[str, Sequence[float]], up_to: int) -> float:
    """Compute the largest width, high - low, of the intervals of max@k at k = 1, 2, 4, ..., `up_to`, predicted above n.

    Infinite below two problems, which have no intervals.
    """
    points = [point for point in estimates(rewards, "max_at_k") if point.k <= up_to]
    ks = predictable_ks(max(map(len, rewards.values()), default=0), up_to)
    points += predict(rewards, "max_at_k", ks).curve() if ks and points else ()
    widths = [math.inf if point.low is None or point.high is None else point.high - point.low for point in points]
    return max(widths, default=math.inf)


def predict(
    rewards: Mapping[str, Sequence[float]],
    metric: Metric,
    ks: Sequence[int],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Prediction:
    """Predict max@k or pass@k at any k from the samples of every problem; problems without any are left out.

    A reward that no sample of any problem earned is predicted never to come. The posterior does not depend on why a
    problem has more samples than another; the unbiased estimators do.

    Raises:
        ValueError: there is no reward.
    """
    samples = counted(rewards, metric)
    weights_RP = resample(np.random.default_rng(seed), len(samples.totals_P), num_resamples)
    parts = [(step, _reach(hits_P, samples.totals_P, weights_RP, ks)) for step, hits_P in samples.steps]
    lowest_PK, lowest_RK = (np.full((rows, len(ks)), samples.lowest) for rows in weights_RP.shape[::-1])
    return Prediction(
        ks=tuple(ks),
        lowest=samples.lowest,
        highest=samples.lowest + sum(step for step, _ in samples.steps),
        values_PK=sum((step * part.values_PK for step, part in parts), start=lowest_PK),
        spreads_PK=sum((step * part.spreads_PK for step, part in parts), start=np.zeros_like(lowest_PK)),
        means_RK=sum((step * part.means_RK for step, part in parts), start=lowest_RK),
        refits_RK=sum((step * part.refits_RK for step, part in parts), start=lowest_RK),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Samples of every problem, as counts of those that reach each level of reward."""

    lowest: float
    "Lowest reward."
    totals_P: Floats
    "Samples of every problem."
    steps: list[tuple[float, Floats]]
    "Of every further level: its distance from the one below, and the samples of every problem that reach it."


def counted(rewards: Mapping[str, Sequence[float]], metric: Metric) -> Counted:
    """Count the samples that reach each level of reward; of pass@k 0 and 1. Problems without a reward are left out.

    Raises:
        ValueError: there is no reward.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in rewards.values() if len(group)]
    if not groups:
        raise ValueError("no reward to predict from")
    if metric == "pass_at_k":
        groups = [(group >= CORRECT_AT).astype(np.float64) for group in groups]
    levels = levels_of(np.concatenate(groups))
    # Halfway between levels: rewards that were rounded to a level count as it.
    pairs = [(float(level - below), (level + below) / 2) for below, level in itertools.pairwise(levels)]
    return Counted(
        lowest=float(levels[0]),
        totals_P=np.array([len(group) for group in groups], dtype=np.float64),
        steps=[(step, np.array([float((group > middle).sum()) for group in groups])) for step, middle in pairs],
    )


def levels_of(rewards: Floats) -> Floats:
    """List the distinct rewards, ascending; quantiles of them where they are more than `MAX_LEVELS`."""
    levels = np.unique(rewards)
    if len(levels) <= MAX_LEVELS:
        return np.asarray(levels)
    return np.unique(np.quantile(levels, np.linspace(0.0, 1.0, MAX_LEVELS)))


def _reach(hits_P: Floats, totals_P: Floats, weights_RP: Floats, ks: Sequence[int]) -> Prediction:
    """Predict the probability that the best of k reaches one level."""
    kinds_2U, kind_P = np.unique(np.stack([hits_P, totals_P]), axis=1, return_inverse=True)
    hits_U, totals_U = kinds_2U
    is_kind_PU = (kind_P.reshape(-1, 1) == np.arange(len(hits_U))).astype(np.float64)
    weights_RU = weights_RP @ is_kind_PU
    posterior_U = fit(hits_P, totals_P).given(hits_U, totals_U)
    failing_UK = np.stack([posterior_U.all_fail(k) for k in ks], axis=1)
    squares_UK = np.stack([posterior_U.all_fail(2 * k) for k in ks], axis=1)
    spreads_UK = np.sqrt((squares_UK - failing_UK**2).clip(min=0.0))
    fits_R = refit(hits_U, totals_U, weights_RU)
    posterior_RU = Beta(a=fits_R.a[:, None], b=fits_R.b[:, None]).given(hits_U, totals_U)
    reached_RUK = np.stack([1 - posterior_RU.all_fail(k) for k in ks], axis=2)
    num_problems = len(hits_P)
    return Prediction(
        ks=tuple(ks),
        lowest=0.0,
        highest=1.0,
        values_PK=(1 - failing_UK)[kind_P.ravel()],
        spreads_PK=spreads_UK[kind_P.ravel()],
        means_RK=np.einsum("ru,ruk->rk", weights_RU, reached_RUK) / num_problems,
        refits_RK=np.einsum("u,ruk->rk", is_kind_PU.sum(axis=0), reached_RUK) / num_problems,
    )
