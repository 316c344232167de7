"""`score`: problems and completions -> rewards and verdicts per test. Streams: memory does not grow with the file."""

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from maxk_lightning.commands.inputs import digest_of
from maxk_lightning.commands.score.files import CompletionsRecord, Refusals, ScoresFile, read_completions
from maxk_lightning.records import problem_from_record, read_problems
from maxk_lightning.rewards import SandboxUnavailableError, UnitTestReward
from maxk_lightning.rewards.unit_tests import Tests
from maxk_lightning.rewards.verdicts import RULES_VERSION
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
    tests: Tests = "all",
    is_binary: bool = False,
    allow_constant: bool = True,
    time_limit_s: float = 4.0,
    time_limit_factor: float = 1.0,
    memory_limit_mb: int = 1024,
    allow_unclosed: bool = False,
    allow_site_packages: bool = False,
    allow_unsafe: bool = False,
) -> None:
    """Run completions on the unit tests of their problems; write one record of rewards and verdicts per input record.

    Records already in `out` are kept: a run that was stopped continues where it was.

    Args:
        problems: JSON Lines of problems.
        completions: JSON Lines of {"id", "completions"}.
        out: JSON Lines to write: {"id", "rewards", "verdicts"}; a reward is null where the sandbox itself failed.
        skip_invalid: Leave malformed records out, count and list them, instead of refusing the file.
        backend: `bwrap` (namespaces on top), `plain`, or `auto`: the stronger one that works here.
        num_workers: Parallel programs; default: the cores of this process.
        max_tests: Use only the first so many tests of each problem, of those that `tests` leaves.
        tests: Count `all` tests, the `hidden` ones alone, or the `public` ones alone; a problem without any is refused.
        is_binary: Reward 1.0 only when every selected test passes, else 0.0.
        allow_constant: Without it, a program that says the same on every test gets 0 for passing a part of them.
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
        tests=tests,
        is_binary=is_binary,
        allow_constant=allow_constant,
        time_limit_s=time_limit_s,
        time_limit_factor=time_limit_factor,
        memory_limit_mb=memory_limit_mb,
        allow_unclosed=allow_unclosed,
        allow_site_packages=allow_site_packages,
        allow_unsafe=allow_unsafe,
    )
    settings = {
        "rules_version": RULES_VERSION,
        "max_tests": max_tests,
        "tests": tests,
        "is_binary": is_binary,
        "allow_constant": allow_constant,
        "time_limit_s": time_limit_s,
        "time_limit_factor": time_limit_factor,
        "memory_limit_mb": memory_limit_mb,
        "allow_unclosed": allow_unclosed,
        "allow_site_packages": allow_site_packages,
    }
    scores_file = ScoresFile(out, settings, inputs=(problems, completions))
    refusals = Refusals(skip_invalid=skip_invalid)
    known = {
        problem.id: problem for problem in read_problems(Path(problems), refusals, partial(_problem_with_tests, reward))
    }
    num_completions, digests = 0, {}
    for record in read_completions(Path(completions), known, refusals):
        num_completions += len(record.completions)
        digests[record.id] = digest_of([_judged(known[record.id]), record.completions])
    done = scores_file.records_done(digests)
    records = read_completions(Path(completions), known, Refusals(skip_invalid=skip_invalid))
    totals = ScoreTotals()
    with reward, scores_file.open(digests) as file:
        print(f"sandbox backend: {_backend_of(reward)}")
        for record, scores in _scored(records, reward, known, done, tqdm(total=num_completions, unit="completion")):
            totals.add(scores)
            scores_file.append(file, _to_record(record, scores))
        totals.show(reward.backend_in_force, scores_file.path, refusals.skipped, len(done))


def _problem_with_tests(reward: UnitTestReward, record: dict[str, Any]) -> Problem:
    if "tests" not in record:
        raise ValueError("`tests` is missing")
    problem = problem_from_record(record)
    if reward.tests != "all":
        reward.check_problems([problem])
    return problem


def _judged(problem: Problem) -> Problem:
    """What of a problem decides verdicts."""
    return replace(problem, prompt="", messages=(), answer=None, columns={}, metadata={})


def _backend_of(reward: UnitTestReward) -> str:
    try:
        return reward.backend_in_force
    except SandboxUnavailableError as error:
        raise ValueError(str(error)) from error


def _scored(
    records: Iterator[CompletionsRecord],
    reward: UnitTestReward,
    known: dict[str, Problem],
    done: dict[str, int],
    bar: "tqdm[Any]",
) -> Iterator[tuple[CompletionsRecord, list[Score]]]:
    """Keep the sandbox busy with a window of completions; yield records in the order of the file."""
    window: collections.deque[tuple[CompletionsRecord, list[Future[Score]]]] = collections.deque()
    num_in_flight = 0
    with bar:
        for record in records:
            if record.id in done:
                if done[record.id] != len(record.completions):
                    raise ValueError(
                        f"id {record.id!r} was scored with {done[record.id]} completions; choose another --out"
                    )
                bar.update(len(record.completions))
                continue
            window.append((record, [reward.submit(known[record.id], text) for text in record.completions]))
            num_in_flight += len(record.completions)
            while num_in_flight > MAX_IN_FLIGHT:
                num_in_flight -= len(window[0][0].completions)
                yield _take_first(window, bar)
        while window:
            yield _take_first(window, bar)


def _take_first(
    window: "collections.deque[tuple[CompletionsRecord, list[Future[Score]]]]", bar: "tqdm[Any]"
) -> tuple[CompletionsRecord, list[Score]]:
    record, futures = window.popleft()
    scores = []
    for future in futures:
        scores.append(future.result())
        bar.update()
    return record, scores


def _to_record(record: CompletionsRecord, scores: Sequence[Score]) -> dict[str, Any]:
    return {
        "id": record.id,
        "rewards": [score.reward for score in scores],
        "verdicts": [list(score.verdicts) for score in scores],
    }


@dataclass(slots=True)
class ScoreTotals:
    """Totals of this run."""

    num_records: int = 0
    "Records written."
    num_completions: int = 0
    "Completions scored."
    rewards_sum: float = 0.0
    "Over completions that could be scored."
    verdicts: "collections.Counter[str]" = field(default_factory=collections.Counter)
    "Tests by verdict."
    missing: "collections.Counter[str]" = field(default_factory=collections.Counter)
    "Completions that could not be scored, by cause."

    def add(self, scores: Sequence[Score]) -> None:
        """Count one record."""
        self.num_records += 1
        self.num_completions += len(scores)
        self.rewards_sum += sum(score.reward for score in scores if score.reward is not None)
        for score in scores:
            self.verdicts.update(score.verdicts)
        self.missing.update(score.missing_cause or "unknown" for score in scores if score.reward is None)

    def show(self, backend: str, out: Path, skipped: Sequence[str], num_kept: int = 0) -> None:
        """Print the totals, what an earlier run left and what was skipped."""
        num_scored = self.num_completions - self.missing.total()
        mean = f"mean reward {self.rewards_sum / num_scored:.4f}" if num_scored else "none with a reward"
        kept = f", {num_kept} records kept of an earlier run" if num_kept else ""
        print(f"{self.num_records} records, {self.num_completions} completions, {mean} -> {out}{kept}")
        print(f"verdicts per test: {dict(self.verdicts.most_common())}; sandbox backend: {backend}")
        if self.missing:
            print(f"{self.missing.total()} completions without a reward, by cause: {dict(self.missing.most_common())}")
        if skipped:
            print(f"skipped {len(skipped)} malformed records:")
            for line in skipped[:NUM_LISTED]:
                print(f"  {line}")
            if len(skipped) > NUM_LISTED:
                print(f"  ... and {len(skipped) - NUM_LISTED} more")
