"""Experience: prompts -> completions -> rewards -> tensors. Knows no Lightning.

Legend: P prompts, N completions per prompt, B = P*N completions, T completion tokens.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maxk_lightning.packing import PackedRows, pack
from maxk_lightning.policy import Policy
from maxk_lightning.rewards import Reward, StreamingReward
from maxk_lightning.rollouts import RolloutEngine, StreamingEngine
from maxk_lightning.rollouts.engine import in_groups
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
        return _rewards(self.groups, self.sampling.num_completions)

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


def _rewards(groups: Sequence[Group], num_completions: int) -> Tensor:
    rewards_PN = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
    return rewards_PN if groups else rewards_PN.view(0, num_completions)


def _mean(values: Sequence[float] | None) -> float:
    return sum(values) / len(values) if values else float("nan")


def collect(
    engine: RolloutEngine, reward: Reward, problems: Sequence[Problem], prompts: Sequence[Prompt], sampling: Sampling
) -> Rollout:
    """Sample a group per prompt and score it: as completions end where both can, else at the end."""
    started = time.perf_counter()
    if isinstance(engine, StreamingEngine) and isinstance(reward, StreamingReward):
        completions, futures = _stream(engine, reward, problems, prompts, sampling)
        generated = time.perf_counter()
        scores = [[future.result() for future in group] for group in futures]
    else:
        completions = engine.generate(prompts, sampling)
        generated = time.perf_counter()
        scores = reward.score(problems, [[completion.text for completion in group] for group in completions])
    scored = time.perf_counter()
    groups = [
        Group(problem=problem, prompt=prompt, completions=group, scores=group_scores)
        for problem, prompt, group, group_scores in zip(problems, prompts, completions, scores, strict=True)
    ]
    for group in groups:
        if len(group.scores) != len(group.completions):
            counts = f"{len(group.scores)} scores for {len(group.completions)} completions"
            raise ValueError(f"the reward gave {counts} of problem {group.problem.id}")
    return Rollout(groups=groups, sampling=sampling, generate_s=generated - started, score_s=scored - generated)


def _stream(
    engine: StreamingEngine,
    reward: StreamingReward,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> tuple[list[list[Completion]], list[list["Future[Score]"]]]:
    """Completions, and their scores to come: each was submitted when it ended, while others were being sampled."""
    arrivals = (
        (index, sample, (completion, reward.submit(problems[index], completion.text)))
        for index, sample, completion in engine.stream(prompts, sampling)
    )
    groups = in_groups(arrivals, len(prompts), sampling.num_completions)
    completions = [[completion for completion, _ in group] for group in groups]
    return completions, [[future for _, future in group] for group in groups]


def logprob_gap(
    policy: Policy, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], temperature: float
) -> tuple[float, float]:
    """Mean and maximum of |log-prob the engine reported - log-prob of the policy|, over tokens, in nats."""
    device = next(policy.parameters()).device
    rows = pack([prompt.token_ids for prompt in prompts], [[c.token_ids for c in group] for group in completions])
    with torch.no_grad():
        own_BT = policy(rows.to(device), temperature).logprobs_BT.cpu()
    reported = [logprob for group in completions for completion in group for logprob in completion.logprobs]
    gaps_M = (own_BT[rows.mask_BT] - torch.tensor(reported)).abs()
    return float(gaps_M.mean()), float(gaps_M.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Whole groups as tensors; the completions of a group stand together."""

    rows: PackedRows
    "Prompts and completions for the policy."
    behaviour_logprobs_BT: Tensor
    "log pi_old of every completion token, float32, nats; 0 where masked."
    rewards_PN: Tensor
    "float64; NaN where a sample could not be scored. No rows where credits are given."
    credits_B: Tensor | None = None
    "float64; for parts of groups, whose credits depend on completions that are not here."
    completions: Sequence[Completion] = ()
    "What the B rows were made of."

    @property
    def mask_BT(self) -> Tensor:
        """True on completion tokens."""
        return self.rows.mask_BT

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return replace(
            self,
            rows=self.rows.to(device),
            behaviour_logprobs_BT=self.behaviour_logprobs_BT.to(device),
            rewards_PN=self.rewards_PN.to(device),
            credits_B=None if self.credits_B is None else self.credits_B.to(device),
        )


def to_batch(
    groups: Sequence[Group],
    max_row_tokens: int | None = None,
    num_completions: int = 0,
    credits_B: Tensor | None = None,
) -> Batch:
    """Lay groups out as tensors; see `packing.pack`.

    Args:
        groups: Whole ones, or, with credits, parts.
        max_row_tokens: Of a packed row.
        num_completions: The N of a batch without whole groups.
        credits_B: Of the completions, where they are known.
    """
    rows = pack(
        [group.prompt.token_ids for group in groups],
        [[completion.token_ids for completion in group.completions] for group in groups],
        max_row_tokens,
    )
    completions = [completion for group in groups for completion in group.completions]
    logprobs = [logprob for completion in completions for logprob in completion.logprobs]
    behaviour_logprobs_BT = torch.zeros(rows.mask_BT.shape)
    behaviour_logprobs_BT[rows.mask_BT] = torch.tensor(logprobs, dtype=torch.float32)
    return Batch(
        rows=rows,
        behaviour_logprobs_BT=behaviour_logprobs_BT,
        rewards_PN=_rewards(groups if credits_B is None else [], num_completions),
        credits_B=credits_B,
        completions=completions,
    )
