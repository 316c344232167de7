"""The evaluation loop: sample a chunk while the one before is scored, write, continue where a killed run stopped."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from maxk_lightning.callbacks.sampling_bar import SamplingBar, make_progress
from maxk_lightning.commands.whole_file import write_whole
from maxk_lightning.evaluation.samples import Sample, append_samples, drop_half_line, read_samples, to_sample
from maxk_lightning.evaluation.summary import Seconds
from maxk_lightning.records import read_records
from maxk_lightning.rewards import Reward
from maxk_lightning.rollouts import RolloutEngine
from maxk_lightning.rollouts.collect import Watcher, sample
from maxk_lightning.rollouts.scoring import score_groups
from maxk_lightning.types import Problem, Prompt, Sampling

Settings = Mapping[str, str | int | float | tuple[str, ...] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to evaluate."""

    problems: Sequence[Problem]
    "Problems in the order of the output."
    prompts: Sequence[Prompt]
    "Prompts, one per problem."
    sampling: Sampling
    "num_completions is the number of samples per problem."
    problems_per_chunk: int
    "Sampled together. Fixed for an output: a chunk that a kill cut is sampled again as a whole, in the same batches."
    first: int = 0
    "Index of the first sample of every problem; those below it are another task's."

    @property
    def indices(self) -> range:
        """Indices of the samples of every problem."""
        return range(self.first, self.first + self.sampling.num_completions)

    def chunks(self) -> Iterator[slice]:
        """Slices of the problems."""
        return (
            slice(start, start + self.problems_per_chunk)
            for start in range(0, len(self.problems), self.problems_per_chunk)
        )


@dataclass(frozen=True, slots=True)
class _Scoring:
    """A sampled chunk on its way through the reward."""

    scored: Future[tuple[list[Sample], float]]
    "Samples to come, and the seconds that scoring them took."
    generating_s: float
    "Seconds that sampling took."


def collect_samples(task: Task, engine: RolloutEngine, reward: Reward, out: Path, settings: Settings) -> list[Sample]:
    """Write `out/samples.jsonl`, one group after the other; samples that are there already are kept, not repeated.

    Every sample depends on (prompt seed, index) alone, so a run that was killed, however often, ends with the content
    of an undisturbed one. Scoring of a chunk runs in a thread beside the sampling of the next.

    Raises:
        ValueError: `out` holds samples of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_settings(out / "settings.json", settings)
    path, times = out / "samples.jsonl", out / "times.jsonl"
    drop_half_line(path)
    drop_half_line(times)
    done = {(sample.id, sample.sample) for sample in read_samples(path)} if path.exists() else set()
    with ExitStack() as stack:
        writer = _Writer(
            file=stack.enter_context(path.open("a", encoding="utf-8")),
            times=stack.enter_context(times.open("a", encoding="utf-8")),
            done=done,
        )
        console = Console(stderr=True)
        progress = stack.enter_context(make_progress(console))
        bar = SamplingBar(progress, "evaluate", lambda line: print(line, file=sys.stderr, flush=True))
        num_done = sum(index in task.indices for _, index in done)
        bar.begin(len(task.problems) * task.sampling.num_completions, num_done)
        thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="scoring"))
        previous: _Scoring | None = None
        for chunk in task.chunks():
            if _is_done(task, chunk, done):
                continue
            current = _sample_chunk(task, chunk, engine, reward, thread, bar)
            writer.finish(previous)
            previous = current
        writer.finish(previous)
    return read_samples(path)


def check_settings(path: Path, settings: Settings) -> None:
    """Remember the settings of an output; ValueError when it was begun with others."""
    settings = json.loads(json.dumps(settings))  # as they are read back: tuples are lists
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in {**earlier, **settings} if earlier.get(key) != settings.get(key)]
        if different:
            parts = "; ".join(f"{key} was {earlier.get(key)!r}, is {settings.get(key)!r}" for key in different)
            raise ValueError(f"{path.parent} holds samples of other settings ({parts}); choose another directory")
        return
    write_whole(path, json.dumps(settings, indent=1) + "\n")


def read_seconds(out: Path) -> Seconds:
    """Seconds spent so far, over all the runs that an output took."""
    chunks = [chunk for _, chunk in read_records(out / "times.jsonl", lambda record: Seconds(**record))]
    return Seconds(
        generating=sum(chunk.generating for chunk in chunks),
        scoring=sum(chunk.scoring for chunk in chunks),
        waiting=sum(chunk.waiting for chunk in chunks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    file: IO[str]
    times: IO[str]
    done: set[tuple[str, int]]

    def finish(self, scoring: _Scoring | None) -> None:
        """Wait for a chunk's scores and write what is not there yet."""
        if scoring is None:
            return
        waiting_from = time.perf_counter()
        samples, scoring_s = scoring.scored.result()
        waiting_s = time.perf_counter() - waiting_from
        new = [sample for sample in samples if (sample.id, sample.sample) not in self.done]
        append_samples(self.file, new)
        seconds = Seconds(generating=scoring.generating_s, scoring=scoring_s, waiting=waiting_s)
        self.times.write(json.dumps(asdict(seconds)) + "\n")
        self.times.flush()


def _sample_chunk(
    task: Task, chunk: slice, engine: RolloutEngine, reward: Reward, thread: ThreadPoolExecutor, watcher: Watcher
) -> _Scoring:
    problems, prompts = task.problems[chunk], task.prompts[chunk]
    started = time.perf_counter()
    groups = sample(engine, prompts, task.sampling, watcher)
    sampled = time.perf_counter()

    def score() -> tuple[list[Sample], float]:
        scoring_from = time.perf_counter()
        scores = score_groups(reward, problems, prompts, groups)
        samples = [
            to_sample(problem.id, index, completion, score)
            for problem, group, group_scores in zip(problems, groups, scores, strict=True)
            for index, completion, score in zip(task.indices, group, group_scores, strict=True)
        ]
        return samples, time.perf_counter() - scoring_from

    return _Scoring(thread.submit(score), sampled - started)


def _is_done(task: Task, chunk: slice, done: set[tuple[str, int]]) -> bool:
    return all((problem.id, index) in done for problem in task.problems[chunk] for index in task.indices)
