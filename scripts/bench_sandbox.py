"""What one program x test costs in the sandbox, against the simple ways to do it; all sides in one run, interleaved.

    python scripts/bench_sandbox.py --json bench_sandbox.json

CPU time (all processes, the caller included) is the fair column: wall time depends on what else the machine does.
Ratios, higher is better, of CPU time per run:
  speed_vs_fork_exec            sandbox against the same warm fork server without any isolation
  speed_vs_subprocess           groups as a policy samples them, against `subprocess.run` per completion and test
  speed_vs_subprocess_distinct  the same with no two programs alike
  speed_vs_subprocess_cached    the same groups scored again
"""

import argparse
import contextlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bench_report

from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.rewards.sandbox.jobs import Job, RunFiles
from maxk_lightning.rewards.sandbox.pool import SandboxPool
from maxk_lightning.rewards.sandbox.protocol import Limits, Outcome
from maxk_lightning.rewards.sandbox.selftest import findings_of
from maxk_lightning.rewards.sandbox.worker import WorkerSettings
from maxk_lightning.types import Problem, TestCase

BARE = "bare fork server"
NUM_TESTS = 8
GROUP_SIZE = 64
NUM_VARIANTS = 24
"Programs that a trained policy chooses from, the r-th with probability proportional to 1/r."
PROGRAMS = (
    "import sys\nfrom collections import defaultdict\nn = int(input())\nd = defaultdict(int)\n"
    "for i in range(n):\n    d[i % 7] += n\nprint(sum(d.values()))\n",
    "def solve(n):\n    return sum(n for _ in range(n))\n\nprint(solve(int(input())))\n",
    "import heapq, math\nn = int(input())\nh = []\n"
    "for i in range(n):\n    heapq.heappush(h, -i)\nprint(int(math.pow(n, 2)))\n",
    "import sys\ninput = sys.stdin.readline\nn = int(input())\nr = 0\nfor _ in range(n):\n    r += n\nprint(r)\n",
)
INPUTS = [f"{n}\n".encode() for n in range(2, 2 + NUM_TESTS)]
EXPECTED = [f"{n * n}\n".encode() for n in range(2, 2 + NUM_TESTS)]
LIMITS = Limits(cpu_s=4.0, wall_s=40.0, memory_bytes=1 << 30, output_bytes=8 << 20)


@dataclass(frozen=True)
class Cost:
    """Of one side, once."""

    cpu_s: float
    wall_s: float


def cpu_s() -> float:
    """Of this process, all processes that ended, and all that live below it (in clock ticks of usually 10 ms)."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both) + living_cpu_s()


def living_cpu_s() -> float:
    """Of the processes below this one and of the children that they waited for."""
    fields: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    frontier, ticks = {os.getpid()}, 0
    while frontier:
        frontier = {pid for pid, field in fields.items() if int(field[1]) in frontier}
        ticks += sum(int(each) for pid in frontier for each in fields[pid][11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def measured(work: Callable[[], None]) -> Cost:
    cpu, wall = cpu_s(), time.perf_counter()
    work()
    return Cost(cpu_s() - cpu, time.perf_counter() - wall)


def distinct(num_programs: int, salt: str) -> list[bytes]:
    return [f"# {salt} {i}\n{PROGRAMS[i % len(PROGRAMS)]}".encode() for i in range(num_programs)]


def run_subprocesses(programs: list[bytes], num_workers: int) -> None:
    """One new interpreter per program and test."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(num_workers) as threads:

        def run(work: tuple[int, bytes]) -> None:
            path = Path(folder) / f"{work[0]}.py"
            path.write_bytes(work[1])
            for stdin, expected in zip(INPUTS, EXPECTED, strict=True):
                done = subprocess.run([sys.executable, str(path)], input=stdin, capture_output=True, check=True)
                assert done.stdout == expected

        list(threads.map(run, enumerate(programs)))


class WarmPool:
    """Fork servers that have run one program each."""

    def __init__(self, settings: WorkerSettings, num_workers: int) -> None:
        self._pool = SandboxPool(settings, num_workers)
        self.run(distinct(2 * num_workers, "warm"))

    def run(self, programs: list[bytes]) -> None:
        """Run all programs and check their outputs."""
        runs = [RunFiles(stdin=stdin) for stdin in INPUTS]
        jobs = [Job(source=program, runs=runs, judge=_judge, limits=LIMITS) for program in programs]
        assert all(all(future.result()) for future in [self._pool.submit(job) for job in jobs])

    def close(self) -> None:
        self._pool.close()


def _judge(index: int, outcome: Outcome, output: bytes) -> bool:
    return outcome.kind == "exited" and output == EXPECTED[index]


def groups(num_groups: int, salt: str) -> tuple[list[Problem], list[list[str]]]:
    """Problems and groups of completions drawn with repetition, as a trained policy repeats itself."""
    generator = random.Random(salt)
    tests = tuple(TestCase(input=i.decode(), output=e.decode()) for i, e in zip(INPUTS, EXPECTED, strict=True))
    weights = [1 / rank for rank in range(1, NUM_VARIANTS + 1)]
    problems = [Problem(id=f"{salt} {g}", prompt="p", tests=tests) for g in range(num_groups)]
    completions = []
    for group in range(num_groups):
        variants = [f"```python\n{p.decode()}```" for p in distinct(NUM_VARIANTS, f"{salt} {group}")]
        completions.append(generator.choices(variants, weights, k=GROUP_SIZE))
    return problems, completions


class Bench:
    """All sides, one repeat at a time."""

    def __init__(self, num_programs: int, num_workers: int) -> None:
        self.num_programs = num_programs
        self.num_workers = num_workers
        self.costs: dict[str, list[Cost]] = {}
        self.num_runs: dict[str, int] = {}
        self.share_distinct = 0.0
        self.pools = {BARE: WorkerSettings(backend="plain", needs_landlock=False, needs_seccomp=False)}
        for backend in ("plain", "bwrap"):
            settings = WorkerSettings(backend=backend)  # type: ignore[arg-type]
            if all(finding.is_held for finding in findings_of(settings)):
                self.pools[f"sandbox {backend}"] = settings

    def repeat(self, index: int) -> None:
        """One measurement of every side."""
        few = max(2, self.num_programs // 16)  # five times the price of the others: fewer are enough
        self._note("subprocess", few, lambda: run_subprocesses(distinct(few, f"{index}"), self.num_workers))
        for name, settings in self.pools.items():
            pool = WarmPool(settings, self.num_workers)
            programs = distinct(self.num_programs, f"{index} {name}")
            self._note(name, len(programs), partial(pool.run, programs))
            pool.close()
        self._groups(index)

    def _groups(self, index: int) -> None:
        problems, completions = groups(max(1, self.num_programs // 16), f"{index}")
        num_completions = sum(map(len, completions))
        self.share_distinct = sum(len(set(group)) for group in completions) / num_completions
        with UnitTestReward(backend=self._best(), num_workers=self.num_workers) as reward:

            def score() -> None:
                assert all(each.reward == 1.0 for group in reward.score(problems, completions) for each in group)

            reward.score(*groups(1, "warm"))
            self._note("groups, first time", num_completions, score)
            self._note("groups, cached", num_completions, score)

    def _best(self) -> Any:
        return "bwrap" if "sandbox bwrap" in self.pools else "plain"

    def _note(self, name: str, num_programs: int, work: Callable[[], None]) -> None:
        self.costs.setdefault(name, []).append(measured(work))
        self.num_runs[name] = num_programs * NUM_TESTS

    def rows(self) -> list[dict[str, Any]]:
        """Medians in milliseconds per program and test."""
        return [
            {
                "side": name,
                "runs": self.num_runs[name],
                "cpu_ms": 1e3 * statistics.median(cost.cpu_s for cost in costs) / self.num_runs[name],
                "wall_ms": 1e3 * statistics.median(cost.wall_s for cost in costs) / self.num_runs[name],
            }
            for name, costs in self.costs.items()
        ]

    def ratio(self, slow: str, fast: str) -> float:
        """Median over repeats of the ratio inside one repeat, so that a change of load hits both sides."""
        pairs = zip(self.costs[slow], self.costs[fast], strict=True)
        per_run = [(s.cpu_s / self.num_runs[slow]) / (f.cpu_s / self.num_runs[fast]) for s, f in pairs]
        return statistics.median(per_run)

    def ratios(self) -> dict[str, float]:
        """By the names in the module's docstring."""
        sandbox = f"sandbox {self._best()}"
        found = {f"speed_vs_fork_exec_{name[8:]}": self.ratio(BARE, name) for name in self.pools if name != BARE}
        return found | {
            "speed_vs_subprocess": self.ratio("subprocess", "groups, first time"),
            "speed_vs_fork_exec": self.ratio(BARE, sandbox),
            "speed_vs_subprocess_distinct": self.ratio("subprocess", sandbox),
            "speed_vs_subprocess_cached": self.ratio("subprocess", "groups, cached"),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bench_report.add_json_option(parser)
    parser.add_argument("--programs", type=int, default=128, help="distinct programs per repeat and side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    bench = Bench(args.programs, args.num_workers)
    for index in range(args.repeats):
        bench.repeat(index)
    bench_report.print_table(
        f"Per program and test, medians of {args.repeats} ({args.num_workers} workers)",
        ("side", "runs", "CPU ms", "wall ms"),
        [(r["side"], str(r["runs"]), f"{r['cpu_ms']:.3f}", f"{r['wall_ms']:.3f}") for r in bench.rows()],
    )
    print(f"distinct programs in the groups: {bench.share_distinct:.0%}")
    bench_report.print_ratios(bench.ratios())
    bench_report.write_json(args.json, bench.rows(), bench.ratios())


if __name__ == "__main__":
    main()
