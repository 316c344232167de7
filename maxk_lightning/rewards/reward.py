"""The seam between training and whatever judges a completion."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from maxk_lightning.types import Problem, Score

# jsonargparse wants the annotations of an implementation to be identical to the Protocol's. With Any at run time a
# user's class needs none, and type checkers still see the types.
if TYPE_CHECKING:
    Problems = Sequence[Problem]
    Completions = Sequence[Sequence[str]]
    Scores = list[list[Score]]
else:
    Problems = Completions = Scores = Any


class Reward(Protocol):
    """Judges completions. Users plug in their own class by class path; parameters must have these names."""

    def score(self, problems: Problems, completions: Completions) -> Scores:
        """Score the completions of each problem: one list per problem, one `Score` per completion, in order.

        Must not raise for anything a completion contains; a completion that could not be judged gets `reward=None`.
        """
        ...


@runtime_checkable
class CheckableReward(Protocol):
    """A reward that can tell before a run whether it will work."""

    def check(self) -> None:
        """Raise ValueError with one sentence where it will not."""
        ...


@runtime_checkable
class StreamingReward(Protocol):
    """A reward that can start on a completion while others are still being sampled."""

    def submit(self, problem: Problem, completion: str) -> "Future[Score]":
        """Start scoring one completion; returns at once."""
        ...
