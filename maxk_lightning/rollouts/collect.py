"""An order -> completions -> scores."""

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

from maxk_lightning.rewards import Reward, StreamingReward
from maxk_lightning.rollouts.engine import RolloutEngine, StreamingEngine, in_groups
from maxk_lightning.rollouts.rollout import Group, Order, Rollout, Samples
from maxk_lightning.rollouts.scoring import score_groups, submit
from maxk_lightning.types import Completion, Prompt, Sampling, Score


class Watcher(Protocol):
    """Follows the progress of sampling; it is called in the thread that samples."""

    def begin(self, num_completions: int) -> None:
        """Note that `num_completions` completions are to come."""
        ...

    def ended(self, completion: Completion) -> None:
        """Note that a completion has ended."""
        ...


def collect(
    engine: RolloutEngine, reward: Reward, order: Order, version: int = 0, watcher: Watcher | None = None
) -> Rollout:
    """Sample a group per prompt and score it: as completions end where both can, else at the end.

    Args:
        engine: Samples.
        reward: Scores.
        order: What to sample.
        version: Optimizer step of the engine's weights.
        watcher: Called for each completion as it ends, or at the end if the engine does not stream.

    Raises:
        EngineError: the engine failed.
        RewardError: the reward failed, or did not give one score per completion.
    """
    started = time.perf_counter()
    if watcher is not None:
        watcher.begin(len(order.prompts) * order.sampling.num_completions)
    if isinstance(engine, StreamingEngine) and isinstance(reward, StreamingReward):
        completions, futures = _stream(engine, reward, order, watcher)
        generated = time.perf_counter()
        scores = [[future.result() for future in group] for group in futures]
    else:
        completions = sample(engine, order.prompts, order.sampling, watcher)
        generated = time.perf_counter()
        scores = score_groups(reward, order.problems, order.prompts, completions, version)
    scored = time.perf_counter()
    parts = zip(order.problems, order.prompts, completions, scores, strict=True)
    groups = [Group(problem=p, prompt=prompt, completions=c, scores=s) for p, prompt, c, s in parts]
    return Rollout(
        samples=Samples(groups=groups, sampling=order.sampling),
        generate_s=generated - started,
        score_s=scored - generated,
        version=version,
    )


def sample(
    engine: RolloutEngine, prompts: Sequence[Prompt], sampling: Sampling, watcher: Watcher | None
) -> list[list[Completion]]:
    """Return what `engine.generate` returns, and call the watcher for each completion."""
    if watcher is None:
        return engine.generate(prompts, sampling)
    with arrivals(engine, prompts, sampling, watcher) as arriving:
        return in_groups(arriving, len(prompts), sampling.num_completions)


@contextmanager
def arrivals(
    engine: RolloutEngine | StreamingEngine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    watcher: Watcher | None = None,
) -> Iterator[Iterator[tuple[int, int, Completion]]]:
    """Give what `engine.stream` yields, and call the watcher; all at the end if the engine does not stream.

    When the body fails the stream is closed at once: ranks that compute together wait for each other's steps, and the
    error would keep the stream alive.
    """
    stream = (
        engine.stream(prompts, sampling)
        if isinstance(engine, StreamingEngine)
        else _at_the_end(engine.generate(prompts, sampling))
    )

    def watched() -> Iterator[tuple[int, int, Completion]]:
        for index, sample, completion in stream:
            if watcher is not None:
                watcher.ended(completion)
            yield index, sample, completion

    try:
        yield watched()
    finally:
        if isinstance(stream, Generator):
            stream.close()


def _at_the_end(groups: Sequence[Sequence[Completion]]) -> Iterator[tuple[int, int, Completion]]:
    return ((index, sample, c) for index, group in enumerate(groups) for sample, c in enumerate(group))


def _stream(
    engine: StreamingEngine, reward: StreamingReward, order: Order, watcher: Watcher | None
) -> tuple[list[list[Completion]], list[list["Future[Score]"]]]:
    """Completions, and their scores to come: each was submitted when it ended, while others were being sampled."""
    with arrivals(engine, order.prompts, order.sampling, watcher) as arriving:
        submitted = (
            (index, sample, (completion, submit(reward, order.problems[index], order.prompts[index], completion)))
            for index, sample, completion in arriving
        )
        groups = in_groups(submitted, len(order.prompts), order.sampling.num_completions)
    completions = [[completion for completion, _ in group] for group in groups]
    return completions, [[future for _, future in group] for group in groups]
