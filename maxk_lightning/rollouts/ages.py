"""How old samples are: optimizer steps between the weights that drew a token and those that training starts from."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Rollout
from maxk_lightning.types import Completion


class Ages(NamedTuple):
    """Ages of the tokens of a rollout, in optimizer steps."""

    mean: float
    "Mean over tokens."
    largest: int
    "Age of the oldest token."


def ages_of(rollout: Rollout, step: int, ranks: Ranks) -> Ages:
    """Compute the ages of a rollout over all ranks, which must call this together.

    Args:
        rollout: What this rank sampled.
        step: Optimizer step at which training on it begins.
        ranks: All ranks.
    """
    counts: Counter[int] = Counter()
    for of_rank in ranks.gather_each(tokens_by_version(rollout.samples.completions, rollout.version)):
        counts.update(of_rank)
    num_tokens = sum(counts.values())
    if not num_tokens:
        return Ages(float(step - rollout.version), step - rollout.version)
    mean = sum(number * (step - version) for version, number in counts.items()) / num_tokens
    return Ages(mean, step - min(counts))


def oldest_version(completions: Iterable[Completion], version: int) -> int:
    """Return the version that drew the oldest token; `version` is that of completions without segments."""
    return min(tokens_by_version(completions, version), default=version)


def tokens_by_version(completions: Iterable[Completion], version: int) -> Counter[int]:
    """Count the tokens that each version of the weights drew; `version` drew those of completions without segments."""
    counts: Counter[int] = Counter()
    for completion in completions:
        end = len(completion.token_ids)
        starts = [*completion.segments, (end, version)] if completion.segments else [(0, version), (end, version)]
        for (first, of_segment), (following, _) in pairwise(starts):
            if following > first:
                counts[of_segment] += following - first
    return counts
