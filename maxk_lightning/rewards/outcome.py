"""Ask any reward, and check what it gave."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from maxk_lightning.rewards.functions.values import tell_of_nan
from maxk_lightning.rewards.reward import CompletionReward, Reward, RewardError
from maxk_lightning.types import Completion, Problem, Score


def score_with(
    reward: Reward,
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
    step: int,
    name: str | None = None,
) -> list[list[Score]]:
    """Scores of completions.

    Raises:
        RewardError: the reward did not give one score per completion.
    """
    if isinstance(reward, CompletionReward):
        given: Any = reward.score_completions(problems, completions, step)
    else:
        given = reward.score(problems, [[completion.text for completion in group] for group in completions])
    return as_scores(name or type(reward).__name__, problems, completions, given)


def as_scores(
    name: str, problems: Sequence[Problem], completions: Sequence[Sequence[Any]], given: Any
) -> list[list[Score]]:
    """Check what a reward gave; numbers count as scores, and NaN as missing.

    Raises:
        RewardError: not one finite score per completion; names the reward, and the problem.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(problems):
        count = f"{len(given)} entries" if isinstance(given, Sequence) else f"a {type(given).__name__}"
        raise RewardError(f"{name}.score gave {count}, must give a list for each of {len(problems)} problems")
    return [
        _group(name, problem, len(group), scores)
        for problem, group, scores in zip(problems, completions, given, strict=True)
    ]


def _group(name: str, problem: Problem, num_completions: int, scores: Any) -> list[Score]:
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise RewardError(f"{name}.score gave a {type(scores).__name__} for problem {problem.id!r}, must give a list")
    if len(scores) != num_completions:
        raise RewardError(
            f"{name}.score gave {len(scores)} scores for {num_completions} completions of problem {problem.id!r}"
        )
    return [_score(name, problem, score) for score in scores]


def _score(name: str, problem: Problem, given: Any) -> Score:
    if given is None or (isinstance(given, int | float)):
        given = Score(reward=None if given is None else float(given), verdicts=())
    if not isinstance(given, Score):
        raise RewardError(
            f"{name}.score gave a {type(given).__name__} for a completion of problem {problem.id!r}, must give a "
            "Score, a number or None"
        )
    if given.reward is None or math.isfinite(given.reward):
        return _plain(name, given)
    if math.isinf(given.reward):
        raise RewardError(f"{name}.score gave {given.reward} for a completion of problem {problem.id!r}")
    tell_of_nan(name, problem.id)
    return _plain(name, replace(given, reward=None))


def _plain(name: str, given: Score) -> Score:
    """The same in Python's own types: a checkpoint that holds scalars of NumPy could not be read back."""
    behaviour: Any = given.behaviour
    if isinstance(behaviour, numbers.Integral):
        behaviour = int(behaviour)
    elif isinstance(behaviour, str):
        behaviour = str(behaviour)
    elif behaviour is not None:
        raise RewardError(f"{name}.score gave a behaviour of type {type(behaviour).__name__}, must be int, str or None")
    return replace(
        given,
        reward=None if given.reward is None else float(given.reward),
        behaviour=behaviour,
        parts={part: None if value is None else float(value) for part, value in given.parts.items()},
    )
