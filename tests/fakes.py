"""Parts that obey the Protocols, for tests of what stands around them."""

from collections.abc import Sequence

from maxk_lightning.types import Problem, Score


class LengthReward:
    """Rewards a completion by the share of its characters that are lower-case letters: cheap, deterministic, varied."""

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        return [[Score(reward=self.reward(text), verdicts=()) for text in group] for group in completions]

    def reward(self, text: str) -> float | None:
        return sum(character.islower() for character in text) / max(1, len(text))


class LossyReward(LengthReward):
    """Loses every sample whose text has a number of characters that 4 divides."""

    def reward(self, text: str) -> float | None:
        return None if len(text) % 4 == 0 else super().reward(text)
