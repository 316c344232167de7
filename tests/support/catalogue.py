"""Run the catalogues in `cases/` on one pool each and print as JSON what went wrong.

Attacks and benign programs are run by the sandbox alone, those of the red team judged as the reward judges them.

A program of its own, because tests start it as another user and with another interpreter:

    python catalogue.py --backend plain [--without landlock seccomp]
"""

import argparse
import json
import os
import random
import socket
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from maxk_lightning.records import problem_from_record
from maxk_lightning.rewards.comparison import same_output
from maxk_lightning.rewards.extraction import extract_code, with_prefix
from maxk_lightning.rewards.judging import judge_program
from maxk_lightning.rewards.preparation import encode, prepare
from maxk_lightning.rewards.sandbox.jobs import Job, RunFiles
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Outcome
from maxk_lightning.rewards.sandbox.worker import WorkerSettings
from maxk_lightning.rewards.verdicts import Judgement, failure_of, reward_of
from maxk_lightning.types import Problem, Verdict

CASES = Path(__file__).parents[1] / "fixtures" / "cases"
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


def tcp_server(port: int, patience_s: float = 240.0) -> socket.socket:
    """Listen where the attacks look; another run of this script may hold the port for a while."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


class Canaries:
    """Servers that no program may reach, and secrets in the environment and in a world-readable file."""

    def __init__(self) -> None:
        self.num_visits = 0
        self._servers = [tcp_server(48213), socket.socket(socket.AF_UNIX)]
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


PROCESSES_PER_WORKER = {"plain": 1, "bwrap": 3}
"Idle: the server, and bubblewrap's monitor and init."
CONTROL = Case(
    name="control",
    source=b"print(int(input()) ** 2)",
    stdin=b"7\n",
    expected=b"49\n",
    verdicts=("AC",),
    repeat=1,
    no_file=None,
)


def wrong_with(case: Case, seen: tuple[Seen, ...]) -> str | None:
    for run in seen:
        if run.verdict not in case.verdicts:
            return f"{case.name}: {run.verdict}, not {'/'.join(case.verdicts)} ({run.outcome}, {run.output[:80]!r})"
        if b"BREACH" in run.output:
            return f"{case.name}: {run.output[:200]!r}"
    if case.no_file is not None and os.path.exists(case.no_file):
        return f"{case.name}: {case.no_file} exists"
    return None


@dataclass(frozen=True)
class RedTeamCase:
    """One program of the red team with its problem."""

    name: str
    completion: str
    problem: Problem
    rewards: tuple[float, ...]
    before: str | None


def red_team() -> list[RedTeamCase]:
    folder = CASES / "redteam"
    return [
        RedTeamCase(
            name=entry["file"],
            completion=_completion_of(folder / entry["file"], is_whole=entry.get("raw", False)),
            problem=problem_from_record({"id": entry["file"], "prompt": "p", **entry["problem"]}),
            rewards=tuple(entry["should"]),
            before=entry.get("before"),
        )
        for entry in json.loads((folder / "manifest.json").read_text())
    ]


def _completion_of(path: Path, *, is_whole: bool) -> str:
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    return text if is_whole else f"``````python\n{text}\n``````"


class ListeningPool(SandboxPool):
    """Keeps what programs and checkers print of breaking out."""

    def __init__(self, settings: WorkerSettings, num_workers: int) -> None:
        super().__init__(settings, num_workers)
        self.breaches: list[str] = []

    def submit(self, job: Job, *, is_next: bool = False) -> "Future[tuple[Any, ...]]":
        judge = job.judge

        def listen(index: int, outcome: Outcome, output: bytes) -> Any:
            if b"BREACH" in output:
                self.breaches.append(f"{job.source[:80]!r}: {output[:80]!r}")
            return judge(index, outcome, output)

        job.judge = listen
        return super().submit(job, is_next=is_next)


RED_TEAM_LIMITS = Limits(cpu_s=4.0, wall_s=40.0, memory_bytes=1 << 30, output_bytes=8 << 20)
CONTROL_PROBLEM = problem_from_record({"id": "c", "prompt": "p", "tests": [{"input": "7\n", "output": "49\n"}]})
CONTROL_COMPLETION = "```\nprint(int(input()) ** 2)\n```"


def judge_completion(pool: SandboxPool, problem: Problem, completion: str) -> "Future[Judgement]":
    cpu_s = problem.time_limit_s or RED_TEAM_LIMITS.cpu_s
    limits = replace(RED_TEAM_LIMITS, cpu_s=cpu_s, wall_s=10 * cpu_s)
    if problem.memory_limit_mb is not None:
        limits = replace(limits, memory_bytes=problem.memory_limit_mb << 20)
    code = extract_code(completion)
    if code is None:
        nothing: Future[Judgement] = Future()
        verdict: Verdict = "no_code"
        nothing.set_result(Judgement(verdicts=(verdict,) * len(problem.tests)))
        return nothing
    return judge_program(
        pool, prepare(problem, problem.tests, limits), encode(with_prefix(code, problem.prefix)), max_limit_hits=2
    )


def run_red_team(settings: WorkerSettings) -> tuple[int, list[str]]:
    """Every program of the red team on one worker, each followed by a harmless control."""
    pool = ListeningPool(settings, num_workers=1)
    cases = {case.name: case for case in red_team()}
    submitted = []
    for case in cases.values():
        if case.before is not None:
            judge_completion(pool, case.problem, cases[case.before].completion)
        judged = judge_completion(pool, case.problem, case.completion)
        submitted.append((case, judged, judge_completion(pool, CONTROL_PROBLEM, CONTROL_COMPLETION)))
    wrong = []
    for case, judged, control in submitted:
        judgement = judged.result(300)
        if reward_of(judgement) not in case.rewards:
            wrong.append(f"{case.name}: {judgement.verdicts}, not {case.rewards}")
        if control.result(300).verdicts != ("passed",):
            wrong.append(f"control after {case.name}: {control.result().verdicts}")
    pool.close()
    return len(cases), wrong + pool.breaches


def run_all(settings: WorkerSettings, num_workers: int, seed: int) -> dict[str, Any]:
    """Every program of both catalogues, shuffled, each hostile one followed by a harmless control."""
    os.environ["SECRET"] = "a secret of the trainer"
    canaries = Canaries()
    spare = [os.dup(0) for _ in range(600)]  # workers inherit descriptors with high numbers
    pool = SandboxPool(settings, num_workers)
    cases = [*attacks(), *benign()]
    random.Random(seed).shuffle(cases)
    queued = [each for case in cases for each in ((case, CONTROL) if "AC" not in case.verdicts else (case,))]
    futures = [(case, pool.submit(job_of(case))) for case in queued]
    wrong = [message for case, future in futures if (message := wrong_with(case, future.result(300)))]
    num_idle = num_workers * PROCESSES_PER_WORKER[settings.backend]
    num_left_over = len(descendants(os.getpid())) - num_idle
    pool.close()
    num_red_team, wrong_red_team = run_red_team(settings)
    time.sleep(0.2)
    for fd in spare:
        os.close(fd)
    return {
        "num_programs": len(cases) + num_red_team,
        "wrong": wrong + wrong_red_team,
        "num_left_over": num_left_over,
        "num_after_close": len(descendants(os.getpid())),
        "num_visits": canaries.num_visits,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="plain", choices=("plain", "bwrap"))
    parser.add_argument("--without", nargs="*", default=[], choices=("landlock", "seccomp"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = WorkerSettings(
        backend=args.backend,
        needs_landlock="landlock" not in args.without,
        needs_seccomp="seccomp" not in args.without,
    )
    print(json.dumps(run_all(chosen, args.workers, args.seed)))
