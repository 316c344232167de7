"""The values that each reward function gave to a rollout, in the log."""

import math
from collections import defaultdict
from collections.abc import Sequence

from maxk_lightning.module import ONCE, PolicyModule
from maxk_lightning.rewards import FunctionReward, Reward, WeightedRewards
from maxk_lightning.rollouts.ranks import Ranks
from maxk_lightning.rollouts.rollout import Samples

Sums = tuple[int, int, float, float]
"Completions, those among them with a value, and the sums of values and of their squares."


def log_parts(module: PolicyModule, prefix: str, reward: Reward, samples: Samples, ranks: Ranks) -> None:
    """Log mean and spread of every reward function by name; all ranks must call this, with what each sampled."""
    if isinstance(reward, FunctionReward | WeightedRewards):
        for tag, value in part_values(ranks.gather_each(sums_of(samples))).items():
            module.log(f"{prefix}/rewards/{tag}", value, sync_dist=True, **ONCE)


def part_weights(reward: Reward) -> dict[str, float]:
    """Return name -> weight of what `log_parts` logs of a reward, but what functions give to `log_metric`."""
    if isinstance(reward, WeightedRewards):
        return {part.name: part.weight for part in reward.parts}
    return {reward.name: 1.0} if isinstance(reward, FunctionReward) else {}


def logs_more(reward: Reward) -> bool:
    """Whether a function of a reward asks for `log_metric`, and so may log names of its own."""
    rewards = [part.reward for part in reward.parts] if isinstance(reward, WeightedRewards) else [reward]
    return any(isinstance(each, FunctionReward) and each.asks_for("log_metric") for each in rewards)


def sums_of(samples: Samples) -> dict[str, Sums]:
    """Sum the values of this rank's samples by name."""
    sums: dict[str, Sums] = defaultdict(lambda: (0, 0, 0.0, 0.0))
    for score in (score for group in samples.groups for score in group.scores):
        for name, value in score.parts.items():
            number = 0.0 if value is None or math.isnan(value) else value
            is_there = value is not None and not math.isnan(value)
            count, valued, total, squares = sums[name]
            sums[name] = (count + 1, valued + is_there, total + number, squares + number * number)
    return dict(sums)


def part_values(of_ranks: Sequence[dict[str, Sums]]) -> dict[str, float]:
    """Compute mean, spread and missing share by tag, from the sums of all ranks.

    The spread is the standard deviation of the completions, as TRL logs it: over one less than their number.

    >>> part_values([{"f": (4, 2, 4.0, 10.0)}])
    {'f': 2.0, 'f_std': 1.4142135623730951, 'f_missing': 0.5}
    """
    values: dict[str, float] = {}
    for name in sorted({name for sums in of_ranks for name in sums}):
        columns = zip(*(sums[name] for sums in of_ranks if name in sums), strict=True)
        count, valued, total, squares = (sum(column) for column in columns)
        if valued:
            mean = values[name] = total / valued
            values[f"{name}_std"] = math.sqrt(max(0.0, squares - valued * mean * mean) / max(1, valued - 1))
        values[f"{name}_missing"] = 1.0 - valued / count
    return values
