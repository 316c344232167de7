r"""The reward of questions whose answer is a number or a formula: is the completion's answer equal to the right one?"""

import collections
import functools
import importlib.util
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast, get_args

from maxk_lightning.rewards.futures import done, then
from maxk_lightning.rewards.sandbox.jobs import Job, RunFiles
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Outcome
from maxk_lightning.rewards.sandbox.selftest import choose_isolation
from maxk_lightning.rewards.unit_tests import default_num_workers
from maxk_lightning.types import MissingCause, Problem, Score, Verdict

logger = logging.getLogger(__name__)

PACKAGES = ("math_verify", "latex2sympy2_extended", "antlr4", "sympy", "mpmath")
"math-verify and what it imports."
JUDGE = Path(__file__).with_name("judge.py").read_text(encoding="utf-8")
MAX_READ = 1 << 14
"Characters at the end of a completion that are looked at: the answer is there, and searching more takes time."
MAX_GOLD = 1 << 12
"Characters of a right answer."
GOLDS_PER_RUN = 32
CACHE_SIZE = 100_000
WALL_FACTOR = 10.0
_PLAIN_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?")


@dataclass(frozen=True, slots=True)
class _Judged:
    verdict: Verdict
    cause: MissingCause | None = None


class MathReward:
    r"""1 where the completion's answer equals the problem's `answer`, by the package math-verify; else 0.

    A completion's answer is its last `\boxed{...}`, else the formula or number behind words such as "the answer is",
    else the last formula or number, all in its last 16384 characters. `0.5`, `\frac12` and `50\%` are equal, and so are
    `x = 3` and `3`. A completion without any answer gets 0 and the verdict `no_answer`.

    Each comparison runs in a process of its own in the sandbox, under a limit of CPU time and memory. One that exceeds
    a limit or ends in an error has no reward (None) and a cause, for it says nothing about the answer. Right answers
    that math-verify cannot read are refused before the run.

    Args:
        needs_latex: only LaTeX counts, in a box or behind announcing words, as in TRL's `accuracy_reward`.
        num_workers: parallel comparisons; None: the cores of this process divided by the ranks on this machine.
        time_limit_s: CPU seconds per comparison.
        memory_limit_mb: address space per comparison in MiB.
    """

    def __init__(
        self,
        *,
        needs_latex: bool = False,
        num_workers: int | None = None,
        time_limit_s: float = 5.0,
        memory_limit_mb: int = 2048,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, must be at least 1 (or null)")
        if not 0.0 < time_limit_s < float("inf"):
            raise ValueError(f"time_limit_s is {time_limit_s}, must be a positive number")
        if memory_limit_mb < 512:
            raise ValueError(f"memory_limit_mb is {memory_limit_mb}, sympy itself needs 512")
        self.needs_latex = needs_latex
        self.num_workers = num_workers
        self.time_limit_s = time_limit_s
        self.memory_limit_mb = memory_limit_mb
        self._lock = threading.RLock()
        self._pool: SandboxPool | None = None
        self._cache: collections.OrderedDict[tuple[str, str], _Judged] = collections.OrderedDict()
        self._readable: set[str] = set()

    def check(self) -> None:
        """Raise ValueError where math-verify is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "rollout.reward: MathReward needs the package math-verify: pip install 'maxk-lightning[math]'"
            )

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise ValueError naming a problem without an answer, or with one that cannot be read."""
        self.check()
        for problem in problems:
            if problem.answer is None:
                raise ValueError(
                    f"problem {problem.id!r} has no `answer` (a text or a number), which MathReward compares with"
                )
        by_answer = {problem.answer: problem for problem in problems if problem.answer is not None}
        for answer in self._unreadable(by_answer):
            raise ValueError(
                f"problem {by_answer[answer].id!r}: math-verify cannot read the answer {answer[:200]!r}; mend it or "
                "leave the problem out"
            )

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Score the completions of each problem; see `Reward`."""
        futures = [
            [self.submit(problem, text) for text in group] for problem, group in zip(problems, completions, strict=True)
        ]
        return [[future.result() for future in group] for group in futures]

    def submit(self, problem: Problem, completion: str) -> "Future[Score]":
        """Start scoring one completion; returns at once."""
        if problem.answer is None:
            raise ValueError(f"problem {problem.id!r} has no `answer`, which MathReward compares with")
        text = completion[-MAX_READ:]
        key = (problem.answer, text)
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                return done(_score(known))
            request = {"gold": problem.answer, "text": text, "needs_latex": self.needs_latex}
            judged = self._run(request, _verdict)
        judged.add_done_callback(functools.partial(self._remember, key))
        return then(judged, _score)

    def answer_of(self, completion: str) -> "Future[str | None]":
        """Start reading what a completion answers, as it wrote it; None: nothing, or it cannot be read in time."""
        return self._run({"text": completion[-MAX_READ:], "needs_latex": self.needs_latex}, _answer)

    def close(self) -> None:
        """Stop the workers. Idempotent; a later use starts them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the settings; they start workers of their own."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return functools.partial(type(self), **settings), ()

    def __enter__(self) -> "MathReward":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unreadable(self, answers: Iterable[str]) -> list[str]:
        """Those that math-verify cannot read, or not in time; numbers are not asked about."""
        asked = [text for text in answers if text not in self._readable and not _PLAIN_NUMBER.fullmatch(text.strip())]
        too_long = [text for text in asked if len(text) > MAX_GOLD]
        asked = [text for text in asked if len(text) <= MAX_GOLD]
        parts = [asked[start : start + GOLDS_PER_RUN] for start in range(0, len(asked), GOLDS_PER_RUN)]
        futures = [self._run({"golds": part}, _places, len(part)) for part in parts]
        unreadable = list(too_long)
        for part, future in zip(parts, futures, strict=True):
            places = future.result()
            if places is None:  # one of them takes too long, or all together
                alone = [self._run({"golds": [text]}, _places).result() for text in part]
                places = [place for place, found in enumerate(alone) if found != []]
            unreadable += [part[place] for place in places]
        self._readable.update(set(asked).difference(unreadable))
        return unreadable

    def _run(self, request: dict[str, Any], read: Any, num_times: int = 1) -> "Future[Any]":
        """Run the judge once; `read` turns how that ended, and what it printed, into the result."""
        cpu_s = self.time_limit_s * num_times
        limits = Limits(
            cpu_s=cpu_s, wall_s=cpu_s * WALL_FACTOR, memory_bytes=self.memory_limit_mb << 20, output_bytes=1 << 16
        )
        job = Job(
            source=JUDGE.encode(),
            runs=[RunFiles(stdin=json.dumps(request).encode())],
            judge=lambda index, outcome, output: read(outcome, output),
            limits=limits,
        )
        with self._lock:
            future = self._started_pool().submit(job)
        return then(future, lambda results: _with_cause(results[0], job.missing_cause))

    def _started_pool(self) -> SandboxPool:
        if self._pool is None or self._pool.owner_pid != os.getpid():  # a fork has no thread that serves the pool
            isolation = choose_isolation("auto", has_site_packages=False, allow_unsafe=True)
            settings = replace(isolation.settings, packages=PACKAGES, warm_up=JUDGE)
            self._pool = SandboxPool(settings, self.num_workers or default_num_workers())
        return self._pool

    def _remember(self, key: tuple[str, str], judged: "Future[_Judged]") -> None:
        with self._lock:
            if judged.exception() is None and judged.result().verdict != "infra_error":
                self._cache[key] = judged.result()
                while len(self._cache) > CACHE_SIZE:
                    self._cache.popitem(last=False)


def _verdict(outcome: Outcome, output: bytes) -> _Judged:
    if outcome.kind == "internal":
        return _Judged("infra_error")
    if outcome.kind in ("cpu_limit", "wall_limit"):
        return _Judged("infra_error", "judging_too_long")
    said = _read(outcome, output)
    if said not in get_args(Verdict) or said == "infra_error":
        return _Judged("infra_error", "judging_failed")
    return _Judged(cast(Verdict, said))


def _answer(outcome: Outcome, output: bytes) -> str | None:
    said = _read(outcome, output)
    return said if isinstance(said, str) and 0 < len(said) <= MAX_GOLD else None


def _places(outcome: Outcome, output: bytes) -> list[int] | None:
    said = _read(outcome, output)
    return said if isinstance(said, list) else None


def _read(outcome: Outcome, output: bytes) -> Any:
    """What the judge printed; None where it did not end well."""
    if outcome.kind != "exited" or outcome.status:
        return None
    try:
        return json.loads(output)
    except ValueError:
        return None


def _with_cause(result: Any, cause: MissingCause | None) -> Any:
    return replace(result, cause=result.cause or cause) if isinstance(result, _Judged) else result


def _score(judged: _Judged) -> Score:
    if judged.verdict == "infra_error":
        return Score(reward=None, verdicts=("infra_error",), missing_cause=judged.cause)
    return Score(reward=float(judged.verdict == "passed"), verdicts=(judged.verdict,))
