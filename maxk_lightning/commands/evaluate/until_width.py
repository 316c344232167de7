"""`evaluate --until_width`: rounds of samples of every problem, until the interval of max@k is narrow enough.

All problems get the same number of samples. More for those that are in doubt would make the number depend on the
rewards: the estimators, which at every k take the problems with k samples, would then average over hard ones alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from maxk_lightning.commands.evaluate.collect_samples import Settings, Task, collect_samples
from maxk_lightning.evaluation.estimates import rewards_of
from maxk_lightning.evaluation.prediction import band_width
from maxk_lightning.evaluation.samples import Sample, by_problem
from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts import RolloutEngine
from maxk_lightning.seeds import derive_seed

NUM_ROUNDS = 16
"Rounds that all the samples are divided into."


def collect_until(
    width: float, task: Task, engine: RolloutEngine, reward: Reward, out: Path, settings: Settings
) -> list[Sample]:
    """Sample round after round until `band_width` is below `width`, or the task's number of samples is there.

    A run that was killed continues in the round it was in; one that has ended continues for a smaller width.

    Raises:
        ValueError: `out` holds samples of other settings.
    """
    num_samples = task.sampling.num_completions
    fixed = {**settings, "samples_per_round": samples_per_round(num_samples)}
    samples: list[Sample] = []
    reached = float("inf")
    for part in rounds(task):
        samples = collect_samples(part, engine, reward, out, fixed)
        if any(sample.sample >= part.indices.stop for sample in samples):
            continue  # an earlier run has begun the next round: a round that was begun is ended
        reached = band_width(rewards_of(by_problem(samples)), num_samples)
        if reached < width:
            break
    Console().print(outcome(width, reached, len(samples), num_samples, len(task.problems)), soft_wrap=True)
    return samples


def rounds(task: Task) -> Iterator[Task]:
    """Equal parts of the samples of every problem; the last may be smaller. Each has seeds of its own."""
    num_samples = task.sampling.num_completions
    size = samples_per_round(num_samples)
    for number, first in enumerate(range(0, num_samples, size)):
        prompts = [replace(prompt, seed=_seed(prompt.seed, number)) for prompt in task.prompts]
        sampling = replace(task.sampling, num_completions=min(size, num_samples - first))
        yield replace(task, prompts=prompts, sampling=sampling, first=first)


def samples_per_round(num_samples: int) -> int:
    """Samples per problem of a round.

    >>> samples_per_round(256), samples_per_round(20)
    (16, 2)
    """
    return -(-num_samples // NUM_ROUNDS)


def _seed(seed: int, number: int) -> int:
    """Seed of a problem in a round: sample i of a group is a function of (seed, i), and indices begin anew."""
    return derive_seed(seed, "round", number)


def outcome(width: float, reached: float, num_drawn: int, num_samples: int, num_problems: int) -> str:
    """Say how wide the interval is and what was saved, or how many problems the width would take."""
    num_all = num_problems * num_samples
    if reached < width:
        return (
            f"--until_width {width:g}: the widest interval is {reached:.3f} wide after {num_drawn} of {num_all} "
            f"samples; {num_all - num_drawn} ({1 - num_drawn / num_all:.0%}) were not needed"
        )
    more = (
        f"; about {num_problems * (reached / width) ** 2:.0f} problems like these would do" if num_problems > 1 else ""
    )
    return f"--until_width {width:g}: not reached, the widest interval is {reached:.3f} wide with all samples{more}"
