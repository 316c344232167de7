"""From `rollout.reward` and `rollout.rewards` to one reward."""

import inspect
from collections.abc import Sequence
from typing import Any

from maxk_lightning import rewards
from maxk_lightning.rewards.found import find
from maxk_lightning.rewards.functions import FunctionReward
from maxk_lightning.rewards.reward import Reward
from maxk_lightning.rewards.unit_tests import UnitTestReward
from maxk_lightning.rewards.weighted import Part, WeightedReward, WeightedRewards

Given = Reward | str | WeightedReward
REWARD, REWARDS = "rollout.reward", "rollout.rewards"


def configured_reward(reward: Reward | str, several: Sequence[Given] | None = None) -> Reward:
    """The reward of a run.

    Args:
        reward: An object with `score`, or the import path of a function, a class without parameters or an object.
        several: Instead: rewards, each with a weight.

    Raises:
        ValueError: one cannot be had, two have one name, or both arguments say something.
    """
    if several is None:
        return as_reward(reward, REWARD)
    if not is_default(reward):
        raise ValueError(f"{REWARD} and {REWARDS} exclude each other: put both into {REWARDS}")
    if not several:
        raise ValueError(f"{REWARDS} is empty")
    return WeightedRewards([_part(given, f"{REWARDS}[{index}]") for index, given in enumerate(several)])


def is_default(reward: Reward | str) -> bool:
    """Whether a reward is the default, which is used where the user gives none."""
    if not isinstance(reward, UnitTestReward):
        return False
    default = vars(UnitTestReward())
    return all(value == default[name] for name, value in vars(reward).items() if not name.startswith("_"))


def as_reward(given: Any, key: str, name: str | None = None) -> Reward:
    """A reward from an object, a function, or the import path of one; ValueError names the configuration key."""
    if isinstance(given, str):
        path = given if "." in given else f"{rewards.__name__}.{given}"
        found = find(path, key)
        given = _built(found, path, key) if inspect.isclass(found) else found
    if hasattr(given, "score"):
        reward: Reward = given
        return reward
    if not callable(given):
        what = f"a {type(given).__name__}"
        raise ValueError(f"{key} is {what}, must be a function, or have a method score(problems, completions)")
    try:
        return FunctionReward(given, name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _built(kind: type, path: str, key: str) -> Any:
    """An object of a class that needs no arguments."""
    if not hasattr(kind, "score") and "__call__" not in vars(kind):
        raise ValueError(f"{key}: class {path} has no method score(problems, completions)")
    score = getattr(kind, "score", None)
    parameters = list(inspect.signature(score).parameters) if score else []
    if score and not {"problems", "completions"} <= set(parameters):
        raise ValueError(
            f"{key}: {path}.score takes ({', '.join(parameters)}), must take (self, problems, completions)"
        )
    try:
        return kind()
    except TypeError as error:
        raise ValueError(
            f"{key}: class {path} cannot be made without arguments ({error}); write class_path and init_args"
        ) from error


def _part(given: Given, key: str) -> Part:
    entry = given if isinstance(given, WeightedReward) else WeightedReward(reward=given)
    reward = as_reward(entry.reward, key, entry.name)
    return Part(name=entry.name or name_of_reward(reward), weight=entry.weight, reward=reward)


def name_of_reward(reward: Reward) -> str:
    """What the log calls a reward: a function's name, else the class's."""
    return reward.name if isinstance(reward, FunctionReward) else type(reward).__name__
