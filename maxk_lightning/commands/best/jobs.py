"""What the page asks for, one after another: requests of many threads, sampled in one."""

import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

from maxk_lightning.commands.best.answers import Given, Searcher, public_test
from maxk_lightning.records import check_keys, object_of, prompt_of, take, unicode_text
from maxk_lightning.rewards import RewardError, UnitTestReward
from maxk_lightning.rollouts import EngineError, ManagedEngine
from maxk_lightning.selection import Candidate
from maxk_lightning.types import LARGEST, Problem, Score

log = logging.getLogger(__name__)

MAX_WAITING = 8
"Requests that wait while one is sampled; further ones are refused."
MAX_TESTS = 32
"Public tests of a request: each is run for each candidate."
Event = dict[str, Any]
"A line of the reply, as JSON; its `event` says what happened."


class GivenUpError(Exception):
    """Whoever asked has left."""


class FullError(Exception):
    """Too many wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request."""

    problem: Problem
    "What is asked; its id decides the random numbers."
    num_samples: int
    "N."
    events: "SimpleQueue[Event | None]" = field(default_factory=SimpleQueue)
    "What happened so far; None: no more to come."
    is_given_up: threading.Event = field(default_factory=threading.Event)
    "Set when nobody reads the reply any more."

    @classmethod
    def parse(cls, body: bytes, max_samples: int, *, has_tests: bool) -> "Job":
        """Read the body of a request: `prompt`, and if wanted `tests`, `num_samples` and `seed`.

        Seed 0 samples what `best --prompt` samples.

        Raises:
            ValueError: naming the key.
        """
        record = object_of(body)
        check_keys(record, required=("prompt",), allowed=("prompt", "tests", "num_samples", "seed"))
        take(record, "prompt", str)
        prompt, _ = prompt_of(record, "prompt")
        lines = take({"tests": [], **record}, "tests", list)
        if len(lines) > MAX_TESTS:
            raise ValueError(f"`tests` holds {len(lines)}, may hold {MAX_TESTS}")
        if lines and not has_tests:
            raise ValueError("`tests` needs rollout.reward: UnitTestReward")
        for index, line in enumerate(lines):
            if not isinstance(line, str):
                raise ValueError(f"`tests[{index}]` must be str, not {type(line).__name__}")
            unicode_text(line, f"tests[{index}]")
        seed = _whole(record, "seed", 0, 0, LARGEST)
        return cls(
            problem=Problem(
                id=f"prompt {seed}" if seed else "prompt",
                prompt=prompt,
                tests=tuple(public_test(line, f"`tests[{index}]`") for index, line in enumerate(lines)),
            ),
            num_samples=_whole(record, "num_samples", max_samples, 1, max_samples),
        )

    def tell(self, event: str, **more: Any) -> None:
        """Add to the reply."""
        self.events.put({"event": event, **more})


class Jobs:
    """Requests that wait; threads put them in, one takes them out."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_busy = False

    def add(self, job: Job) -> None:
        """Put a request behind all others.

        Raises:
            FullError: too many wait.
        """
        with self._changed:
            self._waiting = deque(each for each in self._waiting if not each.is_given_up.is_set())
            if len(self._waiting) >= MAX_WAITING:
                raise FullError
            if before := len(self._waiting) + self._is_busy:
                job.tell("waiting", before=before)
            self._waiting.append(job)
            self._changed.notify()

    def take(self) -> Job:
        """Wait for the next request; the one that was taken before is over."""
        with self._changed:
            self._is_busy = False
            while not self._waiting:
                self._changed.wait()
            self._is_busy = True
            return self._waiting.popleft()


def answer_jobs(searcher: Searcher, jobs: Jobs) -> None:
    """Answer request after request in this thread, until it is interrupted."""
    while True:
        job = jobs.take()
        try:
            _answer(searcher, job)
        except GivenUpError:
            log.info("a request was given up")
        except (ValueError, RewardError, EngineError, torch.OutOfMemoryError) as error:
            log.warning("a request failed", exc_info=error)
            job.tell("error", error=str(error))
            if not isinstance(error, ValueError) and isinstance(searcher.settings.engine, ManagedEngine):
                searcher.settings.engine.close()  # the next use starts afresh
        finally:
            job.events.put(None)


def _answer(searcher: Searcher, job: Job) -> None:
    job.tell("sampling")
    (problem,) = searcher.read(Given([job.problem]), "prompt")
    tests = _Tests(searcher, problem, job)
    (found,) = searcher.find([problem], job.num_samples, tests.ended)
    job.tell("found", answer=asdict(found.answer), clusters=found.clusters, verdicts=tests.verdicts())


class _Tests:
    """Runs the public tests of candidates as they end, in the sandbox; reports both."""

    def __init__(self, searcher: Searcher, problem: Problem, job: Job) -> None:
        reward = searcher.settings.reward
        self.reward = reward if isinstance(reward, UnitTestReward) and problem.tests else None
        self.problem, self.job = problem, job
        self.scores: dict[int, Future[Score]] = {}

    def ended(self, _: int, index: int, candidate: Candidate) -> None:
        """Tell of a candidate, and start on its tests.

        Raises:
            GivenUpError: nobody listens.
        """
        if self.job.is_given_up.is_set():
            raise GivenUpError
        self.job.tell("candidate", index=index, text=candidate.text, mean_logprob=_finite(candidate.mean_logprob))
        if self.reward is not None:
            self.scores[index] = self.reward.submit_public(self.problem, candidate.text)
            self.scores[index].add_done_callback(lambda score: self._judged(index, score))

    def verdicts(self) -> list[Sequence[str]]:
        """Those of all candidates, test by test; empty where there are no tests."""
        return [self.scores[index].result().verdicts for index in sorted(self.scores)]

    def _judged(self, index: int, score: Future[Score]) -> None:
        if score.exception() is None:  # else `verdicts` raises it
            self.job.tell("tests", index=index, verdicts=score.result().verdicts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _whole(record: dict[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = record.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"`{key}` is {value!r:.40}, must be a whole number from {least} to {most}")
    return value
