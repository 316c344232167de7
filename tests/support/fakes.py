"""Parts that obey the Protocols, for tests of what stands around them."""

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.seeds import derive_seed
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score


class LengthReward:
    """Rewards a completion by the share of its characters that are lower-case letters: cheap, deterministic, varied."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [[Score(reward=self.reward(text), verdicts=()) for text in group] for group in completions]

    def reward(self, text: str) -> float | None:
        return sum(character.islower() for character in text) / max(1, len(text))


class SparseReward(LengthReward):
    """Tells the samples of one problem in three apart; those of the others get one reward, so they have no credit."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        scores = super().score(problems, completions)
        equal = Score(reward=0.25, verdicts=())
        return [
            [equal] * len(group) if derive_seed(problem.id) % 3 else group
            for problem, group in zip(problems, scores, strict=True)
        ]


class LossyReward(LengthReward):
    """Loses every sample whose text has a number of characters that 4 divides."""

    def reward(self, text: str) -> float | None:
        return None if len(text) % 4 == 0 else super().reward(text)


class BehavingReward(LossyReward):
    """Takes the length and the first character of a text for its behaviour, which it does not know without letters."""

    gives_behaviours = True

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [
            [replace(score, behaviour=self.behaviour(text)) for score, text in zip(scores, texts, strict=True)]
            for scores, texts in zip(super().score(problems, completions), completions, strict=True)
        ]

    def behaviour(self, text: str) -> str | None:
        return f"{text[:1]}{len(text)}" if any(map(str.isalpha, text)) else None


class RaisingReward(BehavingReward):
    """Raises on one rank, instead of scoring the last of so many rollouts there."""

    def __init__(self, rank: int, num_rollouts: int) -> None:
        self.rank = rank
        self.left = num_rollouts

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        self.left -= 1
        if not self.left and rank() == self.rank:
            raise ZeroDivisionError(f"no reward on rank {self.rank}")
        return super().score(problems, completions)


class RefusingEngine(TransformersEngine):
    """Refuses on the second rank what it is asked for in the second rollout."""

    def __init__(self, policy: str = "builtin") -> None:
        super().__init__(policy)
        self.version = 0

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        super().load_weights(named_tensors, version)
        self.version = version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        if self.version > 0 and rank() == 1:
            raise ValueError("a prompt leaves no room")
        return super().generate(prompts, sampling)


def rank() -> int:
    """Number of this process among those of its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class DeadlyReward(LengthReward):
    """Kills its process, as kill -9 does, instead of scoring the last of so many rollouts."""

    def __init__(self, num_rollouts: int) -> None:
        self.left = num_rollouts

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(problems, completions)
