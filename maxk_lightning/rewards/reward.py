"""The seam between training and whatever judges a completion."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from maxk_lightning.types import Completion, Problem, Score

# jsonargparse wants the annotations of an implementation to be identical to the Protocol's. With Any at run time a
# user's class needs none, and type checkers still see the types.
if TYPE_CHECKING:
    Problems = Sequence[Problem]
    Completions = Sequence[Sequence[str]]
    Scores = list[list[Score]]
else:
    Problems = Completions = Scores = Any


class RewardError(RuntimeError):
    """A reward failed, or gave something that is no reward: names it, and the problem and completion where it can."""


class Reward(Protocol):
    """Judges completions. Users plug in their own class by class path; parameters must have these names.

    One whose scores have a `behaviour` says so with an attribute `gives_behaviours` that is True.
    """

    def score(self, problems: Problems, completions: Completions) -> Scores:
        """Score the completions of each problem: one list per problem, one `Score` per completion, in order.

        Must not raise for anything a completion contains; a completion that could not be judged gets `reward=None`.
        """
        ...


@runtime_checkable
class CheckableReward(Protocol):
    """A reward that knows before a run whether it will work."""

    def check(self) -> None:
        """Raise ValueError with one sentence where it will not."""
        ...


@runtime_checkable
class StreamingReward(Protocol):
    """A reward that can start on a completion while others are still being sampled."""

    def submit(self, problem: Problem, completion: str) -> "Future[Score]":
        """Start scoring one completion; returns at once."""
        ...


@runtime_checkable
class ProblemChecker(Protocol):
    """A reward that knows before a run whether it can judge the answers to these problems."""

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise ValueError with one sentence that names a problem it cannot judge."""
        ...


@runtime_checkable
class CompletionReward(Protocol):
    """A reward that sees more of completions than their text."""

    def score_completions(
        self, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]], step: int
    ) -> list[list[Score]]:
        """As `Reward.score`, with tokens; `step` counts the optimizer steps of the weights that sampled."""
        ...


def gives_behaviours(reward: Reward) -> bool:
    """Whether its scores say which completions behave alike."""
    return bool(getattr(reward, "gives_behaviours", False))


def check_problems(reward: Reward, problems: Sequence[Problem]) -> None:
    """Raise ValueError naming a problem that the reward, as far as it knows, cannot judge."""
    if isinstance(reward, ProblemChecker):
        reward.check_problems(problems)
