"""The selector by the tests that the statement shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.selection.scorers import Numbers
from maxk_lightning.selection.selector import Candidate
from maxk_lightning.types import Problem


@dataclass(frozen=True, slots=True)
class PublicTests:
    """Chooses the candidate that passes most public tests. Where there are none, all are equal."""

    reward: UnitTestReward
    "Runs the tests; the caller closes it."
    name: str = "public"

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[Numbers]:
        """Run every candidate on the public tests."""
        futures = [
            [self.reward.submit_public(problem, candidate.text) for candidate in group] if problem.tests else []
            for problem, group in zip(problems, groups, strict=True)
        ]
        passed = [[float(f.result().verdicts.count("passed")) for f in group] for group in futures]
        return [Numbers(values or [0.0] * len(group)) for values, group in zip(passed, groups, strict=True)]
