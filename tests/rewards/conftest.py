"""Fixtures around the catalogues: the programs in `cases/` with the verdict each must get."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from maxk_lightning.rewards.comparison import same_output
from maxk_lightning.rewards.sandbox.pool import Job, RunFiles, SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Outcome
from maxk_lightning.rewards.verdicts import failure_of

CASES = Path(__file__).parent / "cases"
SHORT = {
    "passed": "AC",
    "wrong_answer": "WA",
    "runtime_error": "RE",
    "memory_limit": "RE",
    "time_limit": "TLE",
    "output_limit": "OLE",
    "infra_error": "INFRA",
}


@dataclass(frozen=True)
class Case:
    """One catalogue entry."""

    name: str
    source: bytes
    stdin: bytes
    expected: bytes
    verdicts: tuple[str, ...]
    repeat: int
    no_file: str | None


def _bytes_of(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _evaluate(expression: str) -> str | bytes:
    return eval(expression, {})  # ours, from the manifest beside the programs


def attacks() -> list[Case]:
    folder = CASES / "attacks"
    return [
        Case(
            name=entry["file"],
            source=(folder / entry["file"]).read_bytes(),
            stdin=entry["stdin"].encode(),
            expected=entry["expect"].encode(),
            verdicts=tuple({"MLE": "RE"}.get(verdict, verdict) for verdict in entry["verdict"]),
            repeat=entry.get("repeat", 1),
            no_file=entry.get("nofile"),
        )
        for entry in json.loads((folder / "manifest.json").read_text())
    ]


def benign() -> list[Case]:
    folder = CASES / "benign"
    return [
        Case(
            name=entry["file"],
            source=(folder / entry["file"]).read_bytes(),
            stdin=_bytes_of(_evaluate(entry["stdin_expr"])),
            expected=_bytes_of(_evaluate(entry["expect_expr"])),
            verdicts=("AC",),
            repeat=1,
            no_file=None,
        )
        for entry in json.loads((folder / "manifest.json").read_text())
    ]


@dataclass(frozen=True)
class Seen:
    """What came of one run."""

    verdict: str
    output: bytes
    outcome: Outcome


LIMITS = Limits(cpu_s=1.5, wall_s=15.0, memory_bytes=1 << 30, output_bytes=8 << 20)


def job_of(case: Case, limits: Limits = LIMITS) -> Job:
    def judge(_: int, outcome: Outcome, output: bytes) -> Seen:
        verdict: Any = failure_of(outcome, len(output), limits.output_bytes)
        if verdict is None:
            verdict = "passed" if same_output(output, case.expected, "tokens") else "wrong_answer"
        return Seen(SHORT[verdict], output, outcome)

    return Job(source=case.source, runs=[RunFiles(stdin=case.stdin)] * case.repeat, judge=judge, limits=limits)


def run_case(pool: SandboxPool, case: Case) -> tuple[Seen, ...]:
    return pool.submit(job_of(case)).result(timeout=120)


class Canaries:
    """Servers that no program may reach, and secrets in the environment and in a world-readable file."""

    def __init__(self) -> None:
        self.num_visits = 0
        self._servers = [socket.create_server(("127.0.0.1", 48213)), socket.socket(socket.AF_UNIX)]
        self._servers[1].bind("\0maxk_canary")
        self._servers[1].listen()
        for server in self._servers:
            threading.Thread(target=self._accept, args=(server,), daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return
            self.num_visits += 1

    def close(self) -> None:
        for server in self._servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()


@pytest.fixture(scope="module")
def canaries() -> Iterator[Canaries]:
    canaries = Canaries()
    yield canaries
    canaries.close()


def descendants(pid: int) -> set[int]:
    """Live processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
    found: set[int] = set()
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        found |= frontier
    return found
