"""Run a random mix of harmless and hostile programs for a long time and look for anything left behind.

    python scripts/soak_sandbox.py --runs 200000 --kill

Checks every verdict, and afterwards that processes, descriptors, memory and temporary files are where they were.
`--kill` also kills a random worker or test with SIGKILL every few seconds: verdicts must stay right.
"""

import argparse
import collections
import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.types import Problem, Score, TestCase

CASES = Path(__file__).parents[1] / "tests" / "fixtures" / "cases"
FAILURES = {"WA": "wrong_answer", "RE": "runtime_error", "TLE": "time_limit", "OLE": "output_limit"}
TIME_LIMIT_S = {"attacks": 0.3, "benign": 4.0}
"CPU seconds: loops shall end soon, right programs shall pass however busy the machine is."
SHARE_OF_SLOW = 0.004
"Programs that run into a limit cost a hundred times the others; they are drawn this rarely."
SLOW_WORDS = (
    "bomb",
    "busy",
    "swallow",
    "hang",
    "giant",
    "flood",
    "recursion",
    "sigstop",
    "heavy",
    "big",
    "memory",
    "ignore",
)
MAX_IN_FLIGHT = 64
KILL_EVERY_S = 3.0
MAX_GROWTH_MB = 48
PR_SET_CHILD_SUBREAPER = 36
SUMS = Problem(
    id="sums",
    prompt="Add two numbers.",
    tests=tuple(TestCase(input=f"{a} {a + 1}\n", output=f"{2 * a + 1}\n") for a in range(4)),
    time_limit_s=TIME_LIMIT_S["benign"],
)
SUM_PROGRAMS = (
    ("a, b = map(int, input().split())\nprint(a + b)", 1.0),
    ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", 1.0),
    ("from collections import Counter\nprint(sum(k * v for k, v in Counter(map(int, input().split())).items()))", 1.0),
    ("print(1)", 0.25),
    ("print(int(input()))", 0.0),
    ("print(", 0.0),
    ("import os\nos.fork()", 0.0),
)


@dataclass(frozen=True)
class Case:
    """A program and the rewards and verdicts that are right for it."""

    name: str
    problem: Problem
    code: str
    verdicts: frozenset[str]
    reward: float | None


def catalogue() -> tuple[list[Case], list[Case]]:
    """Quick and slow programs of the test catalogues."""
    cases = []
    for folder in ("attacks", "benign"):
        for entry in json.loads((CASES / folder / "manifest.json").read_text()):
            stdin = entry["stdin"] if folder == "attacks" else eval(entry["stdin_expr"], {})
            expected = entry["expect"] if folder == "attacks" else eval(entry["expect_expr"], {})
            verdicts = {FAILURES.get(each, "runtime_error") for each in entry.get("verdict", ())} or {"passed"}
            verdicts |= {"memory_limit"} & ({"memory_limit"} if "runtime_error" in verdicts else set())
            text = [
                each if isinstance(each, str) else each.decode("utf-8", "surrogateescape") for each in (stdin, expected)
            ]
            tests = (TestCase(input=text[0], output=text[1]),)
            problem = Problem(id=entry["file"], prompt="p", tests=tests, time_limit_s=TIME_LIMIT_S[folder])
            code = (CASES / folder / entry["file"]).read_text()
            reward = None if folder == "attacks" else 1.0
            cases.append(Case(entry["file"], problem, code, frozenset(verdicts), reward))
    slow = [case for case in cases if any(word in case.name for word in SLOW_WORDS)]
    return [case for case in cases if case not in slow], slow


def draw(generator: random.Random, quick: list[Case], slow: list[Case]) -> Case:
    """Half sums, half catalogue."""
    if generator.random() < SHARE_OF_SLOW:
        return generator.choice(slow)
    if generator.random() < 0.5:
        code, reward = generator.choice(SUM_PROGRAMS)
        return Case("sum", SUMS, code, frozenset(), reward)
    return generator.choice(quick)


def is_right(case: Case, score: Score) -> bool:
    if score.reward is None:
        return False
    if case.reward is not None:
        return score.reward == case.reward
    return score.reward == 0.0 and set(score.verdicts) <= case.verdicts


def descendants() -> list[int]:
    """All live processes below this one, orphans included: this process adopts them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found: list[int] = []
    frontier = {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found += frontier
    return found


def resident_mb(pid: int | str) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def state() -> dict[str, float]:
    """What must not grow."""
    workers = [resident_mb(pid) for pid in descendants()]
    return {
        "num_fds": len(os.listdir("/proc/self/fd")),
        "trainer_mb": resident_mb("self"),
        "largest_worker_mb": max(workers, default=0.0),
        "num_tmp": len(os.listdir("/tmp")) + len(os.listdir("/dev/shm")),
    }


class Killer:
    """Kills a random process of the pool now and then."""

    def __init__(self, generator: random.Random, is_on: bool) -> None:
        self._generator = generator
        self._next = time.monotonic() + KILL_EVERY_S if is_on else float("inf")
        self.num_killed = 0

    def tick(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + KILL_EVERY_S
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self._generator.choice(descendants()), signal.SIGKILL)
            self.num_killed += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200_000, help="programs times tests")
    parser.add_argument("--backend", default="auto", choices=("auto", "bwrap", "plain"))
    parser.add_argument("--num_workers", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true", help="kill workers and tests at random times")
    args = parser.parse_args()

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    quick, slow = catalogue()
    generator = random.Random(args.seed)
    killer = Killer(random.Random(args.seed + 1), args.kill)
    before = {"num_fds": len(os.listdir("/proc/self/fd")), "num_processes": len(descendants())}
    reward = UnitTestReward(backend=args.backend, num_workers=args.num_workers, cache_size=1000)
    print(f"backend {reward.backend_in_force}", flush=True)
    window: collections.deque[tuple[Case, Future[Score]]] = collections.deque()
    wrong: collections.Counter[str] = collections.Counter()
    num_runs, num_programs, start, warm = 0, 0, time.monotonic(), None
    report_at = args.runs // 20
    while num_runs < args.runs or window:
        if num_runs < args.runs and len(window) < MAX_IN_FLIGHT:
            case = draw(generator, quick, slow)
            completion = (
                f"```python\n{case.code}\n# {num_programs}\n```"  # unlike any other: nothing comes from the cache
            )
            window.append((case, reward.submit(case.problem, completion)))
            num_programs += 1
            num_runs += len(case.problem.tests)
            continue
        case, future = window.popleft()
        score = future.result(600)
        if not is_right(case, score):
            wrong[f"{case.name}: {score}"] += 1
            print(f"WRONG {case.name}: {score}", flush=True)
        killer.tick()
        if num_runs >= report_at:
            report_at += args.runs // 20
            now = state()
            warm = warm or now
            rate = num_runs / (time.monotonic() - start)
            print(f"{num_runs} runs, {rate:.0f}/s, {killer.num_killed} kills, {now}", flush=True)
    assert warm is not None
    last = state()
    reward.close()
    time.sleep(0.5)
    problems = [
        f"{key} grew from {warm[key]:.0f} to {last[key]:.0f} MB"
        for key in ("trainer_mb", "largest_worker_mb")
        if last[key] > warm[key] + MAX_GROWTH_MB
    ]
    after = {"num_fds": len(os.listdir("/proc/self/fd")), "num_processes": len(descendants())}
    problems += [f"{key}: {before[key]} before, {after[key]} after" for key in before if after[key] > before[key]]
    problems += [f"{count} x {what}" for what, count in wrong.items()]
    print(f"{num_programs} programs, {num_runs} runs in {time.monotonic() - start:.0f} s, {killer.num_killed} kills")
    print("\n".join(problems) or "nothing left behind, every verdict right")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
