"""What the pool is asked to run: a program and its runs; and the files in memory that runs read and write."""

import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from maxk_lightning.rewards.sandbox.protocol import LIMIT_HITS, Limits, Mode, Outcome, OutcomeKind
from maxk_lightning.types import MissingCause


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What one run reads."""

    stdin: bytes
    "Standard input; a checker's first file."
    expected: bytes = b""
    "A checker's second file; empty otherwise."
    output: bytes = b""
    "A checker's third file; empty otherwise."


Judge = Callable[[int, Outcome, bytes], Any]
"Turns (index of the run, how it ended, its standard output) into a result, in the pool's thread."


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One program and its runs."""

    source: bytes
    "Program text."
    runs: Sequence[RunFiles]
    "At least one."
    judge: Judge
    "Called once per run."
    limits: Limits
    "Of every run."
    mode: Mode = "program"
    "How the program is called."
    function: str = ""
    "Function to call in mode `call`."
    max_limit_hits: int = 0
    "Runs that may end by a time or output limit before the others are skipped; 0: no such rule."
    future: "Future[tuple[Any, ...]]" = field(default_factory=Future)
    "Gets one result per run."
    results: dict[int, Any] = field(default_factory=dict)
    "By index of the run."
    num_limit_hits: int = 0
    "Runs ended by a limit so far."
    last_limit: OutcomeKind = "cpu_limit"
    "The limit that ended the latest of them; runs that are skipped count as ended by it too."
    num_attempts: int = 0
    "Requests of this job that met a failing sandbox."
    missing_cause: MissingCause | None = None
    "Why runs were given up as `internal`; set before the future."
    pending: list[int] = field(default_factory=list)
    "Runs without a result, in order."

    def __post_init__(self) -> None:
        self.pending = list(range(len(self.runs)))

    def conclude(self, index: int, outcome: Outcome, output: bytes = b"") -> None:
        """Judge one run."""
        if outcome.kind == "internal":
            self.missing_cause = self.missing_cause or "lock_down_failed"
        self.results[index] = self.judge(index, outcome, output)
        if outcome.kind in LIMIT_HITS:
            self.num_limit_hits += 1
            self.last_limit = outcome.kind

    def conclude_rest(self, outcome: Outcome) -> None:
        """Judge the runs without a result as if they had ended so."""
        for index in self.pending:
            self.conclude(index, outcome)
        self.pending = []

    def fail(self, error: Exception) -> None:
        """End with one sentence about what nobody expected; runs after it have no result."""
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        failure = RuntimeError(f"a program could not be judged, which is a bug in the sandbox ({what})")
        failure.__cause__ = error
        self.future.set_exception(failure)


def memory_file() -> int:
    """An empty file in memory that takes seals."""
    return os.memfd_create("run", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def input_file(content: bytes) -> int:
    """A memory file that whoever reads it can not make larger or smaller."""
    fd = memory_file()
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(fd, content[written:] if written else content, written)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_output(fd: int, max_bytes: int) -> bytes:
    """At most one byte more than allowed, so that the reader can tell."""
    return os.pread(fd, min(os.fstat(fd).st_size, max_bytes + 1), 0)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
