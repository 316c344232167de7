"""Prompts -> completions -> scores."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

from maxk_lightning.rewards import Reward, StreamingReward
from maxk_lightning.rollouts.engine import RolloutEngine, StreamingEngine, in_groups
from maxk_lightning.rollouts.rollout import Group, Rollout
from maxk_lightning.types import Completion, Problem, Prompt, Sampling, Score


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
