"""`score`: problems and completions -> rewards and verdicts per test. Streams: memory does not grow with the file."""

import collections
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from maxk_lightning.commands.score.files import Group, RecordReader, Resumption, read_groups, read_problems
from maxk_lightning.rewards import SandboxUnavailableError, UnitTestReward
from maxk_lightning.types import Problem, Score

MAX_IN_FLIGHT = 2048
"Completions handed to the sandbox and not yet written."
NUM_LISTED = 20


def score(
    problems: str,
    completions: str,
    out: str,
    skip_invalid: bool = False,
    backend: Literal["auto", "bwrap", "plain"] = "auto",
    num_workers: int | None = None,
    max_tests: int | None = None,
    is_binary: bool = False,
    time_limit_s: float = 4.0,
    time_limit_factor: float = 1.0,
    memory_limit_mb: int = 1024,
    allow_unclosed: bool = False,
    allow_site_packages: bool = False,
    allow_unsafe: bool = False,
) -> None:
    """Run completions on the unit tests of their problems; write one record of rewards and verdicts per input record.

    Records already in `out` are kept: a run that was stopped goes on where it was.

    Args:
        problems: JSON Lines of problems.
        completions: JSON Lines of {"id", "completions"}.
        out: JSON Lines to write: {"id", "rewards", "verdicts"}; a reward is null where the sandbox itself failed.
        skip_invalid: Leave malformed records out, count and list them, instead of refusing the file.
        backend: `bwrap` (namespaces on top), `plain`, or `auto`: the stronger one that works here.
        num_workers: Parallel programs; default: the cores of this process.
        max_tests: Use only the first so many tests of each problem.
        is_binary: Reward 1.0 only when every selected test passes, else 0.0.
        time_limit_s: CPU seconds per test where the problem gives none.
        time_limit_factor: Multiplies every time limit.
        memory_limit_mb: Address space in MiB where the problem gives none.
        allow_unclosed: Accept a last code fence that the end of the completion cut off.
        allow_site_packages: Let programs import this interpreter's installed packages, such as numpy.
        allow_unsafe: Run even where isolation can not be had.

    Raises:
        ValueError: a setting or a record is wrong (with file and line), `out` holds something else, or no isolation.
    """
    reward = UnitTestReward(
        backend=backend,
        num_workers=num_workers,
        max_tests=max_tests,
        is_binary=is_binary,
        time_limit_s=time_limit_s,
        time_limit_factor=time_limit_factor,
        memory_limit_mb=memory_limit_mb,
        allow_unclosed=allow_unclosed,
        allow_site_packages=allow_site_packages,
        allow_unsafe=allow_unsafe,
    )
    reader = RecordReader(skip_invalid=skip_invalid)
    known = read_problems(reader, Path(problems))
    num_completions = sum(len(group.completions) for group in read_groups(reader, Path(completions), known))
    settings = {
        "max_tests": max_tests,
        "is_binary": is_binary,
        "time_limit_s": time_limit_s,
        "time_limit_factor": time_limit_factor,
        "memory_limit_mb": memory_limit_mb,
        "allow_unclosed": allow_unclosed,
        "allow_site_packages": allow_site_packages,
    }
    done = Resumption(Path(out), settings).records_done()
    groups = read_groups(RecordReader(skip_invalid=skip_invalid), Path(completions), known)
    summary = Summary()
    with reward, Path(out).open("a", encoding="utf-8") as file:
        print(f"sandbox backend: {_backend_of(reward)}")
        for group, scores in _scored(groups, reward, known, done, tqdm(total=num_completions, unit="completion")):
            summary.add(scores)
            file.write(json.dumps(_to_record(group, scores)) + "\n")
            file.flush()
        summary.show(reward.backend_in_force, Path(out), reader.skipped)


def _backend_of(reward: UnitTestReward) -> str:
    try:
        return reward.backend_in_force
    except SandboxUnavailableError as error:
        raise ValueError(str(error)) from error


def _scored(
    groups: Iterator[Group],
    reward: UnitTestReward,
    known: dict[str, Problem],
    done: dict[str, int],
    bar: "tqdm[Any]",
) -> Iterator[tuple[Group, list[Score]]]:
    """Keep the sandbox busy with a window of completions; yield groups in the order of the file."""
    window: collections.deque[tuple[Group, list[Future[Score]]]] = collections.deque()
    num_in_flight = 0
    with bar:
        for group in groups:
            if group.id in done:
                if done[group.id] != len(group.completions):
                    raise ValueError(
                        f"id {group.id!r} was scored with {done[group.id]} completions; choose another --out"
                    )
                bar.update(len(group.completions))
                continue
            window.append((group, [reward.submit(known[group.id], text) for text in group.completions]))
            num_in_flight += len(group.completions)
            while num_in_flight > MAX_IN_FLIGHT:
                num_in_flight -= len(window[0][0].completions)
                yield _take_first(window, bar)
        while window:
            yield _take_first(window, bar)


def _take_first(
    window: "collections.deque[tuple[Group, list[Future[Score]]]]", bar: "tqdm[Any]"
) -> tuple[Group, list[Score]]:
    group, futures = window.popleft()
    scores = []
    for future in futures:
        scores.append(future.result())
        bar.update()
    return group, scores


def _to_record(group: Group, scores: Sequence[Score]) -> dict[str, Any]:
    return {
        "id": group.id,
        "rewards": [score.reward for score in scores],
        "verdicts": [list(score.verdicts) for score in scores],
    }


@dataclass(slots=True)
class Summary:
    """Totals of this run."""

    num_groups: int = 0
    "Records written."
    num_completions: int = 0
    "Completions scored."
    rewards_sum: float = 0.0
    "Over completions that could be scored."
    verdicts: "collections.Counter[str]" = field(default_factory=collections.Counter)
    "Tests by verdict."

    def add(self, scores: Sequence[Score]) -> None:
        """Count one record."""
        self.num_groups += 1
        self.num_completions += len(scores)
        self.rewards_sum += sum(score.reward for score in scores if score.reward is not None)
        for score in scores:
            self.verdicts.update(score.verdicts)

    def show(self, backend: str, out: Path, skipped: Sequence[str]) -> None:
        """Print the totals and what was skipped."""
        mean = self.rewards_sum / self.num_completions if self.num_completions else 0.0
        print(f"{self.num_groups} records, {self.num_completions} completions, mean reward {mean:.4f} -> {out}")
        print(f"verdicts per test: {dict(self.verdicts.most_common())}; sandbox backend: {backend}")
        if skipped:
            print(f"skipped {len(skipped)} malformed records:")
            for line in skipped[:NUM_LISTED]:
                print(f"  {line}")
            if len(skipped) > NUM_LISTED:
                print(f"  ... and {len(skipped) - NUM_LISTED} more")
