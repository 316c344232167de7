r"""The selector by majority of answers (self-consistency, Wang et al. 2022, arXiv:2203.11171), compared by mathematics.

`0.5` and `\frac12` are one answer. A candidate without an answer agrees with nobody.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from maxk_lightning.rewards import MathReward
from maxk_lightning.selection.agreement import Behaviours
from maxk_lightning.selection.selector import Candidate
from maxk_lightning.types import Problem, Score


@dataclass(frozen=True, slots=True)
class Majority:
    """Chooses the candidate whose answer most others give."""

    reward: MathReward
    "Reads and compares answers; the caller closes it."
    name: str = "majority"

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[Behaviours]:
        """Read all answers, and join equal ones."""
        started = [[self.reward.answer_of(candidate.text) for candidate in group] for group in groups]
        return [self._observe(problem, group) for problem, group in zip(problems, started, strict=True)]

    def _observe(self, problem: Problem, group: "Sequence[Future[str | None]]") -> Behaviours:
        answers = [future.result() for future in group]
        kinds: dict[str, bytes] = {}  # answer -> the kind of answers that it is equal to
        firsts: list[str] = []
        for answer in dict.fromkeys(filter(None, answers)):
            asked = [self._is(problem, first, answer) for first in firsts]
            places = [place for place, future in enumerate(asked) if future.result().reward == 1.0]
            if not places:
                firsts.append(answer)
            kinds[answer] = str(places[0] if places else len(firsts) - 1).encode()
        return Behaviours([(None if answer is None else kinds.get(answer),) for answer in answers])

    def _is(self, problem: Problem, first: str, answer: str) -> "Future[Score]":
        return self.reward.submit(Problem(id=problem.id, prompt="", answer=first), f"\\boxed{{{answer}}}")
