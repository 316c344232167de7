"""The reward of code problems: the fraction of unit tests that the completion's program passes.

Programs run in the sandbox of `maxk_lightning.rewards.sandbox`: a fresh process per test without files, network, other
processes or anything to inherit, with limits on CPU time, memory and output, in a namespace of its own under `bwrap`.

What is **not** protected:

- against bugs of the kernel and the processor: system calls are filtered, but programs run on the machine's own kernel,
  and side channels (timing, caches, load) are open, also from one program to the next; under `bwrap` a program's
  process number says how many ran before it on its worker;
- the machine's memory as a whole: each test may use `memory_limit_mb`, so the workers together may use that many times
  `num_workers`; inputs and outputs (up to `output_limit_bytes` each) of up to 64 tests per worker lie in memory beside
  that, and a program may keep its output's size once more in pipes and sockets; there is no cgroup;
- in backend `plain`: names and metadata of files (whether a path exists, its size) can be seen, not their contents;
- started as root in a container without the right CAP_DAC_READ_SEARCH, with an interpreter that only root can read:
  programs run as root without any right, and threads per test are bounded by memory alone;
- a program that sleeps: CPU time decides, and `wall_factor` times as long passes before it is stopped;
- the tests themselves: a program sees the inputs, and a problem whose outputs can be guessed can be gamed;
- checkers see expected outputs (in a process of their own, as isolated as a program's) and are trusted not to be fooled
  by a program's output: one that evaluates it approves whatever the program wants;
- `allow_unsafe: true` where a layer is missing: programs act with the user's rights, as far as no layer stops them.
"""

import collections
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, get_args

from maxk_lightning.rewards.extraction import extract_code, with_prefix
from maxk_lightning.rewards.futures import done, then
from maxk_lightning.rewards.judging import judge_program, run_program
from maxk_lightning.rewards.preparation import PreparedProblem, encode, prepare, program_key
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits
from maxk_lightning.rewards.sandbox.selftest import Isolation, SandboxUnavailableError, choose_isolation
from maxk_lightning.rewards.verdict_store import VerdictStore
from maxk_lightning.rewards.verdicts import RULES_VERSION, Judgement, behaviour_on, reward_of
from maxk_lightning.types import Problem, Score, TestCase, Verdict

Tests = Literal["all", "hidden", "public"]
MIN_MEMORY_MB = 64
MAX_WORKERS = 4096
NUM_PREPARED = 1024
MAX_PREPARED_BYTES = 512 << 20
"Encoded tests that are kept beside `NUM_PREPARED`: those of one problem can be tens of MB."


class UnitTestReward:
    """Runs each completion's program on the problem's tests in the sandbox; reward = fraction of selected tests passed.

    Identical programs of a group run once and results are cached by (program, tests). A completion without a fenced
    program gets 0 and the verdict `no_code`; one that the sandbox itself failed on gets no reward (None) and a cause.
    Whatever a program does to itself is its failure: no program can bring a missing reward about. Thread-safe. Workers
    start at the first use and end with this process, however it ends.

    Args:
        backend: `bwrap` (namespaces on top), `plain`, or `auto`: the stronger one that works here.
        num_workers: parallel programs; None: the cores of this process divided by the ranks on this machine.
        max_tests: use only the first so many tests of each problem, of those that `tests` leaves; None: all.
        tests: which tests the reward counts: `all`, the `hidden` ones alone (what is left to gain when an answer is
            chosen by the public ones), or the `public` ones alone. A problem without any of them is refused. Selectors
            run the public tests whatever this says.
        is_binary: reward 1.0 only when every selected test passes, else 0.0.
        allow_constant: false: a program that says the same on every test, such as `return True`, gets 0 instead of the
            share of the tests that happen to expect that.
        time_limit_s: CPU seconds per test where the problem gives none.
        time_limit_factor: multiplies every time limit, as interpreted programs need on limits set for compiled ones.
        wall_factor: wall-clock limit in multiples of the CPU limit, a backstop for programs that sleep.
        memory_limit_mb: address space in MiB where the problem gives none; threads with big stacks need 1024.
        output_limit_bytes: a program that prints more is stopped.
        max_time_limits: after so many time (or output) limits, a checker's among them, a program fails its other tests
            without running them.
        allow_unclosed: accept a last code fence that the end of the completion cut off.
        allow_site_packages: let programs import this interpreter's installed packages, such as numpy.
        allow_unsafe: run even where isolation can not be had. Programs then act with your rights.
        cache_size: results kept.
        cache_file: keep results in this file too, for other processes and later runs: programs that exceeded no limit
            are not run again. For programs that depend on time or chance this repeats the first run. Local disks only.
    """

    gives_behaviours: ClassVar[bool] = True

    def __init__(
        self,
        *,
        backend: Literal["auto", "bwrap", "plain"] = "auto",
        num_workers: int | None = None,
        max_tests: int | None = None,
        tests: Tests = "all",
        is_binary: bool = False,
        allow_constant: bool = True,
        time_limit_s: float = 4.0,
        time_limit_factor: float = 1.0,
        wall_factor: float = 10.0,
        memory_limit_mb: int = 1024,
        output_limit_bytes: int = 8 << 20,
        max_time_limits: int = 2,
        allow_unclosed: bool = False,
        allow_site_packages: bool = False,
        allow_unsafe: bool = False,
        cache_size: int = 200_000,
        cache_file: str | None = None,
    ) -> None:
        self.backend = backend
        self.num_workers = num_workers
        self.max_tests = max_tests
        self.tests = tests
        self.is_binary = is_binary
        self.allow_constant = allow_constant
        self.time_limit_s = time_limit_s
        self.time_limit_factor = time_limit_factor
        self.wall_factor = wall_factor
        self.memory_limit_mb = memory_limit_mb
        self.output_limit_bytes = output_limit_bytes
        self.max_time_limits = max_time_limits
        self.allow_unclosed = allow_unclosed
        self.allow_site_packages = allow_site_packages
        self.allow_unsafe = allow_unsafe
        self.cache_size = cache_size
        self.cache_file = cache_file
        self._check_settings()
        self._lock = threading.RLock()
        self._pool: SandboxPool | None = None
        self._prepared: collections.OrderedDict[tuple[int, Tests], PreparedProblem] = collections.OrderedDict()
        self._prepared_bytes = 0
        self._cache: collections.OrderedDict[bytes, Judgement] = collections.OrderedDict()
        self._running: dict[bytes, Future[Judgement]] = {}
        self._store = None if cache_file is None else VerdictStore(cache_file)

    def _check_settings(self) -> None:
        _check_choice("backend", self.backend, ("auto", "bwrap", "plain"))
        _check_choice("tests", self.tests, get_args(Tests))
        if self.num_workers is not None and self.num_workers > MAX_WORKERS:
            raise ValueError(f"num_workers is {self.num_workers}, must be at most {MAX_WORKERS}")
        for name, count in (("num_workers", self.num_workers), ("max_tests", self.max_tests)):
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}, must be at least 1 (or null)")
        for name, factor in (("time_limit_s", self.time_limit_s), ("time_limit_factor", self.time_limit_factor)):
            if not 0.0 < factor < float("inf"):
                raise ValueError(f"{name} is {factor}, must be a positive number")
        if not self.wall_factor >= 1.0:
            raise ValueError(f"wall_factor is {self.wall_factor}, must be at least 1")
        if self.memory_limit_mb < MIN_MEMORY_MB:
            raise ValueError(f"memory_limit_mb is {self.memory_limit_mb}, the interpreter itself needs {MIN_MEMORY_MB}")
        if self.output_limit_bytes < 1:
            raise ValueError(f"output_limit_bytes is {self.output_limit_bytes}, must be at least 1")
        if self.max_time_limits < 0:
            raise ValueError(f"max_time_limits is {self.max_time_limits}, must be at least 0 (0: run every test)")
        if self.cache_size < 0:
            raise ValueError(f"cache_size is {self.cache_size}, must be at least 0")

    def score(self, problems: Sequence[Problem], completions: Sequence[Sequence[str]]) -> list[list[Score]]:
        """Score the completions of each problem; see `Reward`."""
        if len(problems) != len(completions):
            raise ValueError(f"{len(problems)} problems but {len(completions)} groups of completions")
        futures = [
            [self.submit(problem, completion) for completion in group]
            for problem, group in zip(problems, completions, strict=True)
        ]
        return [[future.result() for future in group] for group in futures]

    def submit(self, problem: Problem, completion: str) -> "Future[Score]":
        """Start scoring one completion, as it arrives from the engine; returns at once."""
        return self._submit(problem, completion, self.tests)

    def submit_public(self, problem: Problem, completion: str) -> "Future[Score]":
        """Start scoring one completion by the public tests alone, whatever `tests` is; the problem needs one."""
        return self._submit(problem, completion, "public")

    def _submit(self, problem: Problem, completion: str, tests: Tests) -> "Future[Score]":
        prepared = self._prepare(problem, tests)
        code = extract_code(completion, allow_unclosed=self.allow_unclosed)
        if code is None:
            verdict: Verdict = "no_code"
            verdicts = (verdict,) * len(prepared.inputs)
            return done(Score(reward=0.0, verdicts=verdicts, behaviour=behaviour_on({}, verdicts)))
        code = with_prefix(code, problem.prefix)
        return then(self._judgement_of(prepared, encode(code)), self._score)

    def behaviour(self, problem: Problem, completion: str, inputs: Sequence[str]) -> "Future[tuple[bytes | None, ...]]":
        """Start a completion's program on inputs of one's own, whose outputs need not be known; returns at once.

        The future gets, per input, a digest of what the program said: equal for outputs that are equal as the problem
        compares them without tolerance. None: it failed there, or there is no program. The problem needs no tests.
        """
        code = extract_code(completion, allow_unclosed=self.allow_unclosed)
        if code is None or not inputs:
            return done((None,) * len(inputs))
        runs = [TestCase(input=text, output="") for text in inputs]
        prepared = prepare(replace(problem, checker=None), runs, self._limits(problem))
        program = encode(with_prefix(code, problem.prefix))
        with self._lock:
            return run_program(self._started_pool(), prepared, program, prepared.inputs, self.max_time_limits)

    def check(self) -> None:
        """Find out before a run whether it can be scored.

        Raises:
            ValueError: `cache_file` is something else, or programs can not be isolated here.
        """
        if self._store is not None:
            self._store.check()
        try:
            self.backend_in_force  # noqa: B018 - for its error
        except SandboxUnavailableError as error:
            raise ValueError(str(error)) from error

    def check_problems(self, problems: Sequence[Problem]) -> None:
        """Raise ValueError naming a problem without tests, or without any that `tests` counts."""
        for problem in problems:
            if not problem.tests:
                raise ValueError(
                    f"problem {problem.id!r} has no `tests`, which {type(self).__name__} runs; answers that are "
                    "compared take another rollout.reward: maxk_lightning.rewards.MathReward or a function of your own"
                )
            _selected(problem, self.tests)

    @property
    def backend_in_force(self) -> Literal["bwrap", "plain", "unsafe"]:
        """What programs run in, found by the self-test; SandboxUnavailableError where isolation can not be had."""
        with self._lock:
            return self._isolation().name

    def close(self) -> None:
        """Stop the workers. Idempotent; a later use starts them again."""
        with self._lock:
            pool, self._pool = self._pool, None
            if self._store is not None:
                self._store.close()
        if pool is not None:
            pool.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the settings; they start workers of their own."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return functools.partial(type(self), **settings), ()

    def __enter__(self) -> "UnitTestReward":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _score(self, judgement: Judgement) -> Score:
        reward = reward_of(judgement, is_binary=self.is_binary, allow_constant=self.allow_constant)
        cause = judgement.missing_cause if reward is None else None
        return Score(reward=reward, verdicts=judgement.verdicts, missing_cause=cause, behaviour=judgement.behaviour)

    def _prepare(self, problem: Problem, tests: Tests) -> PreparedProblem:
        with self._lock:
            prepared = self._prepared.get((id(problem), tests))
            if prepared is None:
                prepared = prepare(problem, _selected(problem, tests)[: self.max_tests], self._limits(problem))
                self._prepared[id(problem), tests] = prepared  # holds the problem, so its id stays taken
                self._prepared_bytes += prepared.num_bytes
                while len(self._prepared) > (1 if self._prepared_bytes > MAX_PREPARED_BYTES else NUM_PREPARED):
                    self._prepared_bytes -= self._prepared.popitem(last=False)[1].num_bytes
            return prepared

    def _limits(self, problem: Problem) -> Limits:
        cpu_s = (problem.time_limit_s or self.time_limit_s) * self.time_limit_factor
        memory_mb = max(MIN_MEMORY_MB, problem.memory_limit_mb or self.memory_limit_mb)
        return Limits(
            cpu_s=cpu_s,
            wall_s=cpu_s * self.wall_factor,
            memory_bytes=memory_mb << 20,
            output_bytes=self.output_limit_bytes,
        )

    def _judgement_of(self, prepared: PreparedProblem, program: bytes) -> "Future[Judgement]":
        """Take the verdicts from the cache, from the same program under way, or from a new run."""
        key = program_key(prepared, program)
        with self._lock:
            judgement = self._known(key, len(prepared.inputs))
            if judgement is not None:
                return done(judgement)
            running = self._running.get(key)
            if running is None:
                running = self._running[key] = judge_program(
                    self._started_pool(), prepared, program, self.max_time_limits
                )
                running.add_done_callback(lambda judged: self._remember(key, judged))
            return running

    def _known(self, key: bytes, num_tests: int) -> Judgement | None:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        stored = None if self._store is None else self._store.get(self._stored_key(key), num_tests)
        if stored is not None:
            self._keep(key, stored)
        return stored

    def _remember(self, key: bytes, judged: "Future[Judgement]") -> None:
        with self._lock:
            self._running.pop(key, None)
            if judged.exception() is None and "infra_error" not in judged.result().verdicts:
                self._keep(key, judged.result())
                if self._store is not None:
                    self._store.put(self._stored_key(key), judged.result())

    def _keep(self, key: bytes, judgement: Judgement) -> None:
        self._cache[key] = judgement
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)

    def _stored_key(self, key: bytes) -> bytes:
        """Other runs may have another interpreter, let programs import more, or judge by other rules."""
        return hashlib.sha256(key + f"{sys.version} {self.allow_site_packages} {RULES_VERSION}".encode()).digest()

    def _started_pool(self) -> SandboxPool:
        if self._pool is None or self._pool.owner_pid != os.getpid():  # a fork has no thread that serves the pool
            self._running.clear()
            self._pool = SandboxPool(self._isolation().settings, self.num_workers or default_num_workers())
        return self._pool

    def _isolation(self) -> Isolation:
        return choose_isolation(
            self.backend, has_site_packages=self.allow_site_packages, allow_unsafe=self.allow_unsafe
        )


def _check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ValueError(f"{name} is {choice!r}, must be one of {', '.join(choices)}")


def _selected(problem: Problem, which: Tests) -> Sequence[TestCase]:
    """The tests of a problem that count; ValueError names one that has tests and none of these."""
    if which == "all" or not problem.tests:
        return problem.tests
    chosen = [test for test in problem.tests if test.is_public == (which == "public")]
    if not chosen:
        raise ValueError(f"problem {problem.id!r} has no {which} test, and the reward's `tests` is {which}")
    return chosen


def default_num_workers() -> int:
    """Cores of this process, or its container's share of them, divided by the ranks on this machine."""
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    num_cores = min(len(os.sched_getaffinity(0)), _cgroup_cores())
    return max(1, int(num_cores) // num_local_ranks)


def _cgroup_cores() -> float:
    """CPU quota of a container; infinite without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return float(quota) / float(period)  # "max" without a quota
    except (OSError, ValueError):
        return float("inf")
