"""The seam between training and whatever judges a completion."""

from collections.abc import Sequence
from typing import Protocol

from maxk_lightning.types import Problem, Score


class Reward(Protocol):
    """Judges completions. Users plug in their own class by class path."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Score the completions of each problem: one list per problem, one `Score` per completion, in order.

        Must not raise for anything a completion contains; a completion that could not be judged gets `reward=None`.
        """
        ...
