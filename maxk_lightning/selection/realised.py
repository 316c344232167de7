"""Realised best-of-k: the expected reward of the candidate that is chosen among k, where max@k is that of the best.

Shapes: N samples of a problem, K values of k.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from maxk_lightning.seeds import derive_seed
from maxk_lightning.selection.selector import Candidate, Seen, Then, first_of, observe_all
from maxk_lightning.types import Problem

NUM_DRAWS = 256
"Random subsets per k where the order depends on the other candidates: a standard error of at most 1/32 per problem."


@dataclass(frozen=True, slots=True, kw_only=True)
class Realisable:
    """A problem with the candidates that were judged."""

    problem: Problem
    "What was asked."
    candidates: Sequence[Candidate]
    "N answers."
    rewards: Sequence[float]
    "True reward of each."


def realised_values(
    selectors: Sequence[Then], groups: Sequence[Realisable], ks: Sequence[int], seed: int
) -> list[list[list[float]]]:
    """Compute realised best-of-k by selector, problem and k; NaN where a problem has fewer than k candidates.

    Args:
        selectors: Combinations of selectors; a selector that is in several looks once.
        groups: Problems, each with candidates.
        ks: Values of k.
        seed: Seed of the subsets that are drawn, with the id of the problem.
    """
    seen_by = observe_all(selectors, [group.problem for group in groups], [group.candidates for group in groups])
    return [
        [
            realised_at_k(each, group.rewards, ks, derive_seed(seed, "select", group.problem.id))
            for each, group in zip(seen, groups, strict=True)
        ]
        for seen in seen_by
    ]


def realised_at_k(seen: Seen, rewards: Sequence[float], ks: Sequence[int], seed: int = 0) -> list[float]:
    """Estimate the mean reward of the chosen one of k candidates, drawn without replacement from N.

    Exact where the order of two candidates depends on no other: the one of rank r (from 0) is the first of a random
    subset with probability C(N - 1 - r, k - 1) / C(N, k). Otherwise the mean over `NUM_DRAWS` subsets, or over all
    where there are no more; unbiased.

    Args:
        seen: The group.
        rewards: True reward of each of its N candidates.
        ks: Values of k; NaN where k exceeds N.
        seed: Seed of the subsets.

    Raises:
        ValueError: the number of rewards is not that of candidates.
    """
    n = len(rewards)
    if n != len(seen.candidates):
        raise ValueError(f"{n} rewards for {len(seen.candidates)} candidates")
    if not seen.depends_on_others:
        return [_exact(seen, rewards, k) if k <= n else math.nan for k in ks]
    generator = random.Random(seed)
    return [_drawn(seen, rewards, k, generator) if k <= n else math.nan for k in ks]


def _exact(seen: Seen, rewards: Sequence[float], k: int) -> float:
    n = len(rewards)
    keys = seen.keys(range(n))
    ranked = sorted(range(n), key=lambda index: keys[index], reverse=True)
    total = math.comb(n, k)
    return sum(math.comb(n - 1 - rank, k - 1) / total * rewards[index] for rank, index in enumerate(ranked))


def _drawn(seen: Seen, rewards: Sequence[float], k: int, generator: random.Random) -> float:
    n = len(rewards)
    if math.comb(n, k) <= NUM_DRAWS:
        subsets = list(itertools.combinations(range(n), k))
    else:
        subsets = [tuple(sorted(generator.sample(range(n), k))) for _ in range(NUM_DRAWS)]
    return sum(rewards[first_of(seen, subset)] for subset in subsets) / len(subsets)
