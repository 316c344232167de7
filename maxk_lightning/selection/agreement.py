"""The selector by agreement of behaviour: what most candidates compute on inputs whose outputs nobody knows.

Candidates are run on the public inputs and on mutated ones. A candidate scores, per input, the share of the candidates
that computed the same (minimum Bayes risk over executions, Shi et al. 2022, arXiv:2204.11454; with `public` before it,
the clusters of CodeT, arXiv:2207.10397, without its generated tests). Programs are isolated, so that none can see what
others compute; one that fails on an input, or prints too much, agrees with nobody there, and one that prints something
else when it is run again agrees with nobody at all.

Shapes: N candidates, I inputs.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rewards.futures import then
from maxk_lightning.selection.inputs import more_inputs
from maxk_lightning.selection.selector import Candidate
from maxk_lightning.types import Problem

Behaviour = tuple[bytes | None, ...]
"What a program computed, input by input; None: it failed there."


class Behaviours:
    """The behaviour of every candidate of a group."""

    depends_on_others = True

    def __init__(self, of: Sequence[Behaviour]) -> None:
        """Take the behaviours, all on the same inputs."""
        self.of = of
        columns = list(zip(*of, strict=True))
        numbers: dict[tuple[int, bytes], int] = {}
        self._numbers_NI = np.array(
            [
                [0 if key is None else numbers.setdefault((place, key), len(numbers) + 1) for key in column]
                for place, column in enumerate(columns)
            ],
            dtype=np.int64,
        ).T.reshape(len(of), len(columns))  # one per different output of an input; 0: it failed there

    def scores(self, indices: Sequence[int]) -> list[float]:
        """Compute for each candidate the mean over inputs of the share of these candidates that computed the same."""
        chosen_NI = self._numbers_NI[list(indices)]
        counts = np.bincount(chosen_NI.ravel(), minlength=1)
        counts[0] = 0
        agreeing: list[int] = counts[chosen_NI].sum(axis=1).tolist()
        return [count / max(1, chosen_NI.size) for count in agreeing]

    def confidence(self, index: int) -> float | None:
        """Return the share of the group that computed the same on every input; None: no input, or it failed on all."""
        own = self.of[index]
        if all(key is None for key in own):
            return None
        return sum(other == own for other in self.of) / len(self.of)

    def clusters(self) -> list[int | None]:
        """Number the candidates' behaviours, 1 for that of most; None: it failed on every input, or there was none.

        >>> Behaviours([(b"3",), (b"4",), (None,), (b"4",)]).clusters()
        [2, 1, None, 1]
        """
        sizes = Counter(own for own in self.of if any(key is not None for key in own))
        numbers = {own: place for place, (own, _) in enumerate(sizes.most_common(), start=1)}
        return [numbers.get(own) for own in self.of]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Chooses the candidate that computes what most others compute. Without any public input all are equal."""

    reward: UnitTestReward
    "Runs the programs; the caller closes it."
    num_inputs: int = 32
    "Inputs of a problem, its public ones included."
    seed: int = 0
    "Seed of the mutations."
    name: str = "agreement"

    def __post_init__(self) -> None:
        if self.num_inputs < 1:
            raise ValueError(f"num_inputs is {self.num_inputs}, must be at least 1")

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[Behaviours]:
        """Run every candidate on all inputs; equal programs run once."""
        futures = [
            start_all(self.reward, problem, group, more_inputs(problem, self.num_inputs, self.seed))
            for problem, group in zip(problems, groups, strict=True)
        ]
        return [Behaviours([future.result() for future in group]) for group in futures]


def start_all(
    reward: UnitTestReward, problem: Problem, group: Sequence[Candidate], inputs: Sequence[str]
) -> "list[Future[Behaviour]]":
    """Start every candidate on the inputs, the last of them twice; equal programs once."""
    started: dict[str, Future[Behaviour]] = {}
    for candidate in group:
        if candidate.text not in started:
            behaviour = reward.behaviour(problem, candidate.text, [*inputs, *inputs[-1:]])
            started[candidate.text] = then(behaviour, _if_repeatable)
    return [started[candidate.text] for candidate in group]


def _if_repeatable(behaviour: Behaviour) -> Behaviour:
    """The behaviour on all inputs, of which the last was run twice."""
    if not behaviour or behaviour[-1] == behaviour[-2]:
        return behaviour[:-1]
    return (None,) * (len(behaviour) - 1)
