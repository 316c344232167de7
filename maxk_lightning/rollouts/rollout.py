"""A rollout: groups of samples from one version of the policy.

Legend: P prompts, N completions per prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The n samples of one prompt."""

    problem: Problem
    "What was asked."
    prompt: Prompt
    "As the policy read it."
    completions: list[Completion]
    "n answers of the behaviour policy."
    scores: list[Score]
    "Their scores, in the same order."

    @property
    def rewards(self) -> list[float]:
        """Rewards; NaN where a sample could not be scored."""
        return [float("nan") if score.reward is None else score.reward for score in self.scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Groups collected from one version of the policy."""

    groups: list[Group]
    "One per prompt; all of the same size."
    sampling: Sampling
    "How the completions were drawn."
    generate_s: float
    "Wall-clock seconds spent sampling."
    score_s: float
    "Wall-clock seconds spent scoring after sampling had ended."
    version: int = 0
    "Optimizer step of the weights that sampled."

    @property
    def rewards_PN(self) -> Tensor:
        """Rewards, float64; NaN where a sample could not be scored."""
        return rewards_of(self.groups, self.sampling.num_completions)

    @property
    def values_of(self) -> dict[str, Tensor]:
        """One value per completion of every tag of `metrics.RolloutMetrics`."""
        scores = [score for group in self.groups for score in group.scores]
        values: dict[str, list[float]] = {
            "completion_tokens": [len(completion.token_ids) for completion in self.completions],
            "truncated_fraction": [completion.finish_reason == "length" for completion in self.completions],
            "sample_entropy": [_mean(completion.entropies) for completion in self.completions],
            "no_code_fraction": ["no_code" in score.verdicts for score in scores],
            "missing_fraction": [score.reward is None for score in scores],
        }
        return {tag: torch.tensor(column, dtype=torch.float64) for tag, column in values.items()}

    @property
    def completions(self) -> Iterator[Completion]:
        """All completions."""
        return (completion for group in self.groups for completion in group.completions)


def rewards_of(groups: Sequence[Group], num_completions: int) -> Tensor:
    rewards_PN = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
    return rewards_PN if groups else rewards_PN.view(0, num_completions)


def _mean(values: Sequence[float] | None) -> float:
    return sum(values) / len(values) if values else float("nan")
