"""Orders, groups, and rollouts: groups sampled from one version of the policy, or begun with one.

Legend: P prompts, N completions per prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from maxk_lightning.objectives import UNKNOWN_BEHAVIOUR, GroupFacts
from maxk_lightning.types import Completion, MissingCause, Problem, Prompt, Sampling, Score


def _sample_entropy(completion: Completion, score: Score) -> float:
    entropies = completion.entropies
    return sum(entropies) / len(entropies) if entropies else float("nan")


def _is_missing_by(cause: MissingCause, completion: Completion, score: Score) -> float:
    return score.missing_cause == cause


SAMPLE_VALUES: dict[str, Callable[[Completion, Score], float]] = {
    "completion_tokens": lambda completion, score: len(completion.token_ids),
    "truncated_fraction": lambda completion, score: completion.finish_reason == "length",
    "no_code_fraction": lambda completion, score: "no_code" in score.verdicts,
    "no_answer_fraction": lambda completion, score: "no_answer" in score.verdicts,
    "unfinished_reasoning_fraction": lambda completion, score: "unfinished_reasoning" in score.verdicts,
    "missing_fraction": lambda completion, score: score.reward is None,
    **{f"missing_{cause}": partial(_is_missing_by, cause) for cause in get_args(MissingCause)},
    "sample_entropy": _sample_entropy,
}
"Tag of the log -> value of one sample; the log shows the mean."


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one rank is to sample for one rollout."""

    index: int
    "Number of the rollout in the run, from 0."
    problems: Sequence[Problem]
    "Problems of this rank."
    prompts: Sequence[Prompt]
    "Prompts of these problems, in the same order."
    sampling: Sampling
    "Settings of the completions."


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The n samples of one prompt; groups of a rollout may differ in n (`allocation`)."""

    problem: Problem
    "Problem that was asked."
    prompt: Prompt
    "The problem as the policy read it."
    completions: list[Completion]
    "n answers of the behaviour policy."
    scores: list[Score]
    "Scores of the answers, in the same order."

    @property
    def rewards(self) -> list[float]:
        """Rewards; NaN where a sample could not be scored."""
        return [float("nan") if score.reward is None else score.reward for score in self.scores]

    @property
    def behaviours(self) -> list[int]:
        """Numbers from 0, equal for samples that behave alike; -1 where that is not known."""
        number_of: dict[int | str, int] = {}
        return [
            UNKNOWN_BEHAVIOUR if score.behaviour is None else number_of.setdefault(score.behaviour, len(number_of))
            for score in self.scores
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Groups that belong together: what a rank sampled, or its share of an optimizer step."""

    groups: Sequence[Group]
    "One per prompt."
    sampling: Sampling
    "Settings that the completions were drawn with."
    idle: Sequence[Group] = ()
    "Groups of the step that get no credit: they count, and nothing is computed for them."

    @property
    def rewards_PN(self) -> Tensor:
        """Rewards, float64; NaN where a sample could not be scored."""
        return rewards_of(self.groups, self.sampling.num_completions)

    @property
    def behaviours_PN(self) -> Tensor:
        """Behaviours, int64, of the same shape; see `Group.behaviours`."""
        return behaviours_of(self.groups, self.sampling.num_completions)

    @property
    def values(self) -> dict[str, Tensor]:
        """Values of every tag of `SAMPLE_VALUES`, float64, one per completion."""
        pairs = [pair for group in self.groups for pair in zip(group.completions, group.scores, strict=True)]
        return {
            tag: torch.tensor([value_of(*pair) for pair in pairs], dtype=torch.float64)
            for tag, value_of in SAMPLE_VALUES.items()
        }

    @property
    def completions(self) -> Iterator[Completion]:
        """Iterate over all completions."""
        return (completion for group in self.groups for completion in group.completions)

    @property
    def num_tokens(self) -> int:
        """Completion tokens."""
        return sum(len(completion.token_ids) for completion in self.completions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What one rank sampled."""

    samples: Samples
    "Groups, one per prompt of the order."
    generate_s: float
    "Wall-clock seconds spent sampling."
    score_s: float
    "Wall-clock seconds spent scoring after sampling had ended."
    version: int = 0
    "Optimizer step of the weights that it was begun with; `Completion.segments` lists those pushed meanwhile."
    sync_s: float = 0.0
    "Wall-clock seconds that pushing these weights, and those pushed meanwhile, took, proofs included."
    logprob_gap: float = float("nan")
    "Mean |log-prob of the engine - log-prob of the trainer| in these proofs, nats per token; worst rank and push."
    sequence_gap: float = float("nan")
    "The same for the sums over a completion, nats per completion."
    chosen: Sequence[int] | None = None
    "Places of the groups to train on, in the order of all ranks' groups in the prompt stream; None: all."


def extended(first: Rollout, more: Rollout, samples: Samples) -> Rollout:
    """Return the rollout of a first part and one that was sampled after it; `samples` are those of both."""
    assert first.version == more.version, "parts of two rollouts"
    return replace(
        more,
        samples=samples,
        generate_s=first.generate_s + more.generate_s,
        score_s=first.score_s + more.score_s,
    )


def lean(group: Group) -> Group:
    """Return a group without tests and columns: they can be large, and are not needed once rewards are known."""
    return replace(group, problem=replace(group.problem, tests=(), columns={}))


def rewards_of(groups: Sequence[Group], num_completions: int = 0) -> Tensor:
    """Collect rewards_PN, float64; NaN where a sample could not be scored, or a group has fewer.

    Args:
        groups: P groups.
        num_completions: Smallest N; it is larger if a group has more completions.
    """
    return _padded([group.rewards for group in groups], num_completions, float("nan"), torch.float64)


def behaviours_of(groups: Sequence[Group], num_completions: int = 0) -> Tensor:
    """Collect behaviours_PN, int64; -1 where a group has fewer samples; see `Group.behaviours`, `rewards_of`."""
    return _padded([group.behaviours for group in groups], num_completions, UNKNOWN_BEHAVIOUR, torch.int64)


def facts_of(groups: Sequence[Group], num_completions: int = 0) -> GroupFacts:
    """Collect what objectives may need to know of the groups; arguments as for `rewards_of`."""
    return GroupFacts(
        behaviours_PN=behaviours_of(groups, num_completions),
        told_ks_P=torch.tensor([group.prompt.told_k or 0 for group in groups], dtype=torch.int64),
    )


def _padded(rows: Sequence[Sequence[float]], size: int, filling: float, dtype: torch.dtype) -> Tensor:
    size = max([size, *map(len, rows)])
    filled = [[*row, *[filling] * (size - len(row))] for row in rows]
    return torch.tensor(filled, dtype=dtype).view(len(rows), size)
