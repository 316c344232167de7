"""CodeT's dual execution agreement (Chen et al. 2022, arXiv:2207.10397): which compute the same, and what they pass.

Candidates that compute the same on every input are a consensus set; the paper scores it by its number of solutions
times the number of tests that they pass. Its implementation takes the square root of the first factor, and so do we:
solutions are drawn from one policy, and a hundred that are wrong in the same way say little more than ten.

How this differs from the paper:

- the tests are the public ones, not generated; where none of the candidates passes any, the first factor decides alone;
- the inputs of the consensus are the public ones and mutations of them (`inputs`). One that fails on an input agrees
  with nobody there: a set counts its candidates times the share of the inputs on which it gives an output;
- what candidates propose (`proposed`) comes without an expected output, and counts less than one further candidate:
  the share that agrees, as in `Agreement`, is added to the number of candidates. So it separates those that compute
  the same on all other inputs, or replaces them where no test is public, and a candidate that proposes inputs on which
  only its copies agree gains less than one further copy would.

Public tests count less than one might expect: many that pass one test may come before few that pass two.
`public+codet` puts the tests first.

Shapes: N candidates.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.selection.agreement import Behaviour, Behaviours, start_all
from maxk_lightning.selection.inputs import more_inputs
from maxk_lightning.selection.proposed import proposed_inputs
from maxk_lightning.selection.public_tests import PublicTests
from maxk_lightning.selection.selector import Candidate
from maxk_lightning.types import Problem


class ConsensusSets:
    """What every candidate of a group computes and passes."""

    depends_on_others = True

    def __init__(self, known: Sequence[Behaviour], proposed: Sequence[Behaviour], passed: Sequence[float]) -> None:
        """Take what each computes on public and mutated inputs and on proposed ones, and its number of tests passed."""
        sets = {behaviour: place for place, behaviour in enumerate(dict.fromkeys(known))}
        self._set_N = np.array([sets[behaviour] for behaviour in known], dtype=np.int64)
        self._said_N = np.array([sum(key is not None for key in of) / max(1, len(of)) for of in known])
        self._passed_N = np.array(passed, dtype=np.float64)
        self._proposed = Behaviours(proposed)
        self._all = Behaviours([(*first, *second) for first, second in zip(known, proposed, strict=True)])

    def scores(self, indices: Sequence[int]) -> list[float]:
        """Compute the square root of the size of each candidate's set among these, times its public tests passed."""
        chosen = list(indices)
        sets_N, passed_N = self._set_N[chosen], self._passed_N[chosen]
        sizes_N = np.bincount(sets_N)[sets_N] * self._said_N[chosen] + np.array(self._proposed.scores(chosen))
        scores: list[float] = (np.sqrt(sizes_N) * (passed_N if passed_N.any() else 1.0)).tolist()
        return scores

    def confidence(self, index: int) -> float | None:
        """Return the share of the group that computed the same on every input, proposed ones too; as `Behaviours`."""
        return self._all.confidence(index)

    def clusters(self) -> list[int | None]:
        """Number the candidates' behaviours; see `Behaviours.clusters`."""
        return self._all.clusters()


@dataclass(frozen=True, slots=True)
class DualAgreement:
    """Chooses the candidate of the largest consensus set that passes most public tests.

    All candidates of a group propose inputs, also where only a part of the group is scored.
    """

    reward: UnitTestReward
    "Runs the programs; the caller closes it."
    num_inputs: int = 32
    "Inputs of a problem: public and mutated ones; of the mutated ones, up to half are replaced by proposed ones."
    seed: int = 0
    "Seed of the mutations, and of the order in which candidates propose."
    name: str = "codet"

    def __post_init__(self) -> None:
        if self.num_inputs < 1:
            raise ValueError(f"num_inputs is {self.num_inputs}, must be at least 1")

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[ConsensusSets]:
        """Run every candidate on all inputs and public tests; equal programs run once."""
        started = [self._start(problem, group) for problem, group in zip(problems, groups, strict=True)]
        passed = PublicTests(self.reward).observe(problems, groups)
        return [
            ConsensusSets([of.result() for of in known], [of.result() for of in proposed], numbers.values)
            for (known, proposed), numbers in zip(started, passed, strict=True)
        ]

    def _start(
        self, problem: Problem, group: Sequence[Candidate]
    ) -> "tuple[list[Future[Behaviour]], list[Future[Behaviour]]]":
        """Two runs: proposed inputs take no time away from the others."""
        most = self.num_inputs // 2
        known = more_inputs(problem, self.num_inputs - most, self.seed)
        proposed = proposed_inputs(problem, [candidate.text for candidate in group], known, most, self.seed)
        known = more_inputs(problem, self.num_inputs - len(proposed), self.seed)
        return (
            start_all(self.reward, problem, group, known),
            start_all(self.reward, problem, group, [text for text in proposed if text not in known]),
        )
