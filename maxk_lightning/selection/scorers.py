"""Selectors by a number per candidate: its likelihood under the policy, or the score of any reward."""

from collections.abc import Sequence
from dataclasses import dataclass

from maxk_lightning.rewards import Reward
from maxk_lightning.rewards.outcome import as_scores
from maxk_lightning.selection.selector import Candidate
from maxk_lightning.types import Problem


@dataclass(frozen=True, slots=True)
class Numbers:
    """A number per candidate that depends on no other."""

    values: Sequence[float]
    depends_on_others: bool = False

    def scores(self, indices: Sequence[int]) -> list[float]:
        """Return the numbers."""
        return [self.values[index] for index in indices]

    def confidence(self, index: int) -> None:
        """Return None: not known."""
        return


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Chooses the candidate with the largest mean log-prob per token."""

    name: str = "likelihood"

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[Numbers]:
        """Take the log-probs that the engine reported; a candidate without one comes last."""
        return [
            Numbers([c.mean_logprob if c.mean_logprob is not None else float("-inf") for c in group])
            for group in groups
        ]


@dataclass(frozen=True, slots=True)
class Scorer:
    """Chooses the candidate that a reward scores highest, without hidden tests: a reward model, or any function."""

    reward: Reward
    name: str = "scorer"

    def observe(self, problems: Sequence[Problem], groups: Sequence[Sequence[Candidate]]) -> list[Numbers]:
        """Ask the reward; a candidate that it leaves out comes last.

        Raises:
            RewardError: it did not give one score per candidate.
        """
        texts = [[candidate.text for candidate in group] for group in groups]
        scores = as_scores(self.name, problems, texts, self.reward.score(problems, texts))
        return [Numbers([float("-inf") if s.reward is None else s.reward for s in group]) for group in scores]
