"""How old samples are: optimizer steps between the weights that drew a token and those that training begins with."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Rollout
from maxk_lightning.types import Completion


class Ages(NamedTuple):
    """Of the tokens of a rollout, in optimizer steps."""

    mean: float
    "Over tokens."
    largest: int
    "Of the oldest token."


def ages_of(rollout: Rollout, step: int, ranks: Ranks) -> Ages:
    """Ages of a rollout, over all ranks, which come here together with what each sampled.

    Args:
        rollout: What this rank sampled.
        step: Optimizer step that training on it begins at.
        ranks: All of them.
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
    """The version that drew the oldest of their tokens; `version` is that of completions without segments."""
    return min(tokens_by_version(completions, version), default=version)


def tokens_by_version(completions: Iterable[Completion], version: int) -> Counter[int]:
    """How many tokens each version of the weights drew; `version` those of completions without segments."""
    counts: Counter[int] = Counter()
    for completion in completions:
        end = len(completion.token_ids)
        starts = [*completion.segments, (end, version)] if completion.segments else [(0, version), (end, version)]
        for (first, of_segment), (following, _) in pairwise(starts):
            if following > first:
                counts[of_segment] += following - first
    return counts
