"""Several rewards as one: their weighted sum, as in TRL."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maxk_lightning.rewards.functions import FunctionReward
from maxk_lightning.rewards.outcome import as_scores, score_with
from maxk_lightning.rewards.reward import CheckableReward, Reward, check_problems, gives_behaviours
from maxk_lightning.types import Completion, Problem, Score

Scores = list[list[Score]]


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads the `vars` of an instance that is a default
class WeightedReward:
    """One of several rewards."""

    reward: Reward | str
    "An object with `score`, or the import path of a function."
    weight: float = 1.0
    "Factor of its value in the sum; 0: it is only logged, a metric of one's own."
    name: str | None = None
    "What the log calls it; None: the name of the function or class."

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"rollout.rewards: weight is {self.weight}, must be a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One term of the sum."""

    name: str
    "In the log."
    weight: float
    "Factor."
    reward: Reward
    "Judges."


class WeightedRewards:
    """The sum of weight x reward over the rewards that judged a completion.

    One that left a completion out (None) adds nothing for it, as in TRL: the weights of the others stay as they are. A
    completion that all left out has no reward. Those of weight 0 have no say in that, other than in TRL: what a failed
    sandbox could not judge gets no reward because something measured its length. Functions that are `async def` run
    beside each other and beside the rest.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Take the terms; ValueError where two have one name, or all have weight 0."""
        names = [part.name for part in parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"rollout.rewards: two are called {twice!r}; give one of them another `name`")
        if not any(part.weight for part in parts):
            raise ValueError("rollout.rewards: every weight is 0, so that there is nothing to train on")
        self.parts = parts
        self.name = " + ".join(names)

    @property
    def gives_behaviours(self) -> bool:
        """Whether one of the rewards does; scores have the behaviour that the first of them gives."""
        return any(gives_behaviours(part.reward) for part in self.parts)

    def check(self) -> None:
        """Raise ValueError where one of the rewards cannot work."""
        for part in self.parts:
            if isinstance(part.reward, CheckableReward):
                part.reward.check()

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise ValueError naming a problem that one of the rewards cannot judge."""
        for part in self.parts:
            check_problems(part.reward, problems)

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> Scores:
        """Score texts; functions that ask for `completion_ids` get None."""
        scores = [
            as_scores(part.name, problems, completions, part.reward.score(problems, completions)) for part in self.parts
        ]
        return self._sums(scores)

    def score_completions(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]], step: int
    ) -> Scores:
        """Score completions."""
        waits = [_start(part, problems, completions, step) for part in self.parts]
        return self._sums([wait() for wait in waits])

    def _sums(self, scores: Sequence[Scores]) -> Scores:
        """Sums per completion; `scores` has an entry per part."""
        by_problem = zip(*scores, strict=True)
        return [[self._sum(said) for said in zip(*groups, strict=True)] for groups in by_problem]

    def _sum(self, said: Sequence[Score]) -> Score:
        pairs = list(zip(self.parts, said, strict=True))
        terms = [part.weight * score.reward for part, score in pairs if part.weight and score.reward is not None]
        logged = {name: value for score in said for name, value in score.parts.items()}
        return Score(
            reward=math.fsum(terms) if terms else None,
            verdicts=tuple(verdict for score in said for verdict in score.verdicts),
            missing_cause=None if terms else next((score.missing_cause for score in said if score.missing_cause), None),
            behaviour=next((score.behaviour for score in said if score.behaviour is not None), None),
            parts=logged | {part.name: score.reward for part, score in pairs},
        )


def _start(
    part: Part, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]], step: int
) -> Callable[[], Scores]:
    if isinstance(part.reward, FunctionReward):
        return part.reward.start(problems, completions, step)
    return functools.partial(score_with, part.reward, problems, completions, step, part.name)
