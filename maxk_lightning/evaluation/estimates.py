"""max@k and pass@k of every problem, and curves over k with bootstrap intervals.

Shapes: P problems, N samples per problem, K values of k. NaN: a k that a problem has too few samples for.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch

from maxk_lightning.estimators import max_at_k
from maxk_lightning.evaluation.bootstrap import Floats, bootstrap
from maxk_lightning.evaluation.samples import Sample

Metric = str
"""`max_at_k`, `pass_at_k`, `distinct_at_k` where behaviours are known, `realised:SELECTOR` where `evaluate --select`
measured it, or `predicted:` and a metric."""
METRICS: tuple[Metric, ...] = ("max_at_k", "pass_at_k")
DISTINCT: Metric = "distinct_at_k"
"Number of different behaviours among the fully correct of k samples."
CORRECT_AT = 1.0
"Reward of a fully correct completion: all tests passed."
LEVEL = 0.95
"Confidence level of all intervals."


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One point of a curve."""

    k: int
    "Number of samples k of which the best is taken."
    value: float
    "Mean value over problems."
    low: float | None = None
    "Lower end of the bootstrap interval over problems; None where there is none."
    high: float | None = None
    "Upper end of the interval."
    num_problems: int | None = None
    "Problems with at least k samples; None where unknown (published numbers)."


def rewards_of(groups: Mapping[str, Sequence[Sample]]) -> dict[str, list[float]]:
    """Collect the rewards of the scored samples of each problem."""
    return {id_: [sample.reward for sample in group if sample.reward is not None] for id_, group in groups.items()}


def ladder(num_samples: int) -> list[int]:
    """List 1, 2, 4, ..., n; n itself closes the ladder also where it is no power of two.

    >>> ladder(12)
    [1, 2, 4, 8, 12]
    """
    powers = [2**exponent for exponent in range(num_samples.bit_length())]
    return [k for k in powers if k < num_samples] + [num_samples] * (num_samples > 0)


def per_problem(rewards: Mapping[str, Sequence[float]], metric: Metric, ks: Sequence[int]) -> Floats:
    """Estimate max@k or pass@k of every problem, in order, at every k: [P, K]; NaN with fewer than k scored samples."""
    values = np.full((len(rewards), len(ks)), np.nan)
    rows_of_size: dict[int, list[int]] = {}
    for row, group in enumerate(rewards.values()):
        rows_of_size.setdefault(len(group), []).append(row)
    groups = list(rewards.values())
    for size, rows in rows_of_size.items():
        columns = [column for column, k in enumerate(ks) if k <= size]
        rewards_PN = torch.tensor([groups[row] for row in rows], dtype=torch.float64)
        if metric == "pass_at_k":
            rewards_PN = (rewards_PN >= CORRECT_AT).double()
        if columns:
            values[np.ix_(rows, columns)] = max_at_k(rewards_PN, [ks[column] for column in columns]).numpy()
    return values


def estimates(rewards: Mapping[str, Sequence[float]], metric: Metric) -> tuple[Estimate, ...]:
    """Estimate the curve over k = 1, 2, 4, ..., n, each k over the problems with at least k scored samples."""
    ks = ladder(max(map(len, rewards.values()), default=0))
    return curve_of(per_problem(rewards, metric, ks), ks)


def distinct_estimates(groups: Mapping[str, Sequence[Sample]]) -> tuple[Estimate, ...]:
    """Estimate the curve of different behaviours among the fully correct of k samples, k = 1, 2, 4, ..., n.

    Means are over the problems of which a behaviour is known; there is no point where none is. A correct sample of
    unknown behaviour is not counted, one without a reward is left out of its group.
    """
    scored = {id_: [sample for sample in group if sample.reward is not None] for id_, group in groups.items()}
    known = [group for group in scored.values() if any(sample.behaviour is not None for sample in group)]
    ks = ladder(max(map(len, known), default=0))
    values = [distinct_at_k(correct_counts(group), len(group), ks) for group in known]
    return curve_of(np.array(values).reshape(len(known), len(ks)), ks)


def correct_counts(samples: Sequence[Sample]) -> list[int]:
    """Count the fully correct samples of each known behaviour, the most frequent first."""
    correct = (sample for sample in samples if sample.reward is not None and sample.reward >= CORRECT_AT)
    counts = Counter(sample.behaviour for sample in correct if sample.behaviour is not None)
    return sorted(counts.values(), reverse=True)


def distinct_at_k(counts: Sequence[int], num_samples: int, ks: Sequence[int]) -> list[float]:
    """Estimate the number of kinds among k samples, without bias; NaN for a k above the number of samples.

    The mean over all k-subsets: a kind is missed by C(n - count, k) of C(n, k). What `DistinctMaxAtK` adds to max@k.

    Args:
        counts: Samples of each kind that counts.
        num_samples: All samples n, also those of no kind.
        ks: Values of k.

    >>> [round(value, 3) for value in distinct_at_k([2, 1], 4, [1, 2, 4])]
    [0.75, 1.333, 2.0]
    """
    return [
        sum(1.0 - comb(num_samples - count, k) / comb(num_samples, k) for count in counts)
        if k <= num_samples
        else math.nan
        for k in ks
    ]


def curve_of(values: Floats, ks: Sequence[int]) -> tuple[Estimate, ...]:
    """Compute means over problems with intervals, of values [P, K]; NaN where a problem has none."""
    points: list[Estimate] = []
    for columns in columns_by_problems(values):
        present = values[~np.isnan(values[:, columns[0]])][:, columns]
        has_interval = len(present) > 1
        low_K, high_K = bootstrap(present).interval(LEVEL)
        points.extend(
            Estimate(
                k=ks[column],
                value=float(present[:, i].mean()),
                low=float(low_K[i]) if has_interval else None,
                high=float(high_K[i]) if has_interval else None,
                num_problems=len(present),
            )
            for i, column in enumerate(columns)
        )
    return tuple(points)


def columns_by_problems(values: Floats) -> list[list[int]]:
    """Group neighbouring columns in which the same problems have values: they can share resamples.

    >>> columns_by_problems(np.array([[0.5, 0.5, 0.5], [0.5, 0.5, np.nan]]))
    [[0, 1], [2]]
    """
    blocks: list[list[int]] = []
    for column in range(values.shape[1]):
        is_same = blocks and (np.isnan(values[:, column]) == np.isnan(values[:, blocks[-1][0]])).all()
        if is_same:
            blocks[-1].append(column)
        else:
            blocks.append([column])
    return blocks
