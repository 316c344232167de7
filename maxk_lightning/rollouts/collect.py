"""An order -> completions -> scores."""

import time
from concurrent.futures import Future
from itertools import starmap

from maxk_lightning.rewards import Reward, StreamingReward
from maxk_lightning.rollouts.engine import RolloutEngine, StreamingEngine, in_groups
from maxk_lightning.rollouts.rollout import Group, Order, Rollout, Samples
from maxk_lightning.rollouts.scoring import score_groups, submit
from maxk_lightning.types import Completion, Problem, Prompt, Score


def collect(engine: RolloutEngine, reward: Reward, order: Order, version: int = 0) -> Rollout:
    """Sample a group per prompt and score it: as completions end where both can, else at the end.

    Args:
        engine: Samples.
        reward: Scores.
        order: What to sample.
        version: Optimizer step of the engine's weights.

    Raises:
        RewardError: the reward failed, or did not give one score per completion.
    """
    started = time.perf_counter()
    if isinstance(engine, StreamingEngine) and isinstance(reward, StreamingReward):
        completions, futures = _stream(engine, reward, order)
        generated = time.perf_counter()
        scores = [[future.result() for future in group] for group in futures]
    else:
        completions = engine.generate(order.prompts, order.sampling)
        generated = time.perf_counter()
        scores = score_groups(reward, order.problems, order.prompts, completions, version)
    scored = time.perf_counter()
    groups = list(starmap(_group, zip(order.problems, order.prompts, completions, scores, strict=True)))
    return Rollout(
        samples=Samples(groups=groups, sampling=order.sampling),
        generate_s=generated - started,
        score_s=scored - generated,
        version=version,
    )


def _stream(
    engine: StreamingEngine, reward: StreamingReward, order: Order
) -> tuple[list[list[Completion]], list[list["Future[Score]"]]]:
    """Completions, and their scores to come: each was submitted when it ended, while others were being sampled."""
    arrivals = (
        (index, sample, (completion, submit(reward, order.problems[index], order.prompts[index], completion)))
        for index, sample, completion in engine.stream(order.prompts, order.sampling)
    )
    groups = in_groups(arrivals, len(order.prompts), order.sampling.num_completions)
    completions = [[completion for completion, _ in group] for group in groups]
    return completions, [[future for _, future in group] for group in groups]


def _group(problem: Problem, prompt: Prompt, completions: list[Completion], scores: list[Score]) -> Group:
    return Group(problem=problem, prompt=prompt, completions=completions, scores=scores)
