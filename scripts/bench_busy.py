"""What a training loses when another process keeps a core busy: `fit` with configs/tiny.yaml, by turns quiet and busy.

    python scripts/bench_busy.py --json bench_busy.json

The command is a user's plain one: no OMP_* variable is set for it. All of it runs on the first `--cores` cores this
process may use, so that the ratio means the same on a larger machine. Ratio, lower is better, of medians of wall time:
  time_vs_quiet    beside a process that spins, against alone; the goal is 1.5 on two cores
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import bench_report

ROOT = Path(__file__).resolve().parents[1]
SPIN = "while True: pass"


@dataclass(frozen=True)
class Cost:
    """Of one training."""

    side: str
    wall_s: float
    cpu_s: float
    "Of the training and all processes it waited for; not of the one that spins."


@contextmanager
def spinning() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def train(side: str, rollouts: int, overrides: list[str]) -> Cost:
    """Train in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "maxk_lightning", "fit", "--config", "configs/tiny.yaml"]
        command += ["--trainer.default_root_dir", root, "--trainer.max_epochs", str(rollouts), *overrides]
        start_s, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(side=side, wall_s=time.perf_counter() - start_s, cpu_s=cpu_s)


def main() -> None:
    """Train by turns, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="how many of this process's cores everything runs on")
    bench_report.add_json_option(parser)
    args, overrides = parser.parse_known_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    overrides = ["--validate_before_fit", "false", *overrides]
    train("warm", 1, overrides)  # reads the files of torch once
    costs = []
    for _ in range(args.repeats):
        costs.append(train("quiet", args.rollouts, overrides))
        with spinning():
            costs.append(train("busy", args.rollouts, overrides))
    medians = {}
    rows = []
    for side in ("quiet", "busy"):
        walls_s = [cost.wall_s for cost in costs if cost.side == side]
        cpu_s = statistics.median(cost.cpu_s for cost in costs if cost.side == side)
        medians[side] = statistics.median(walls_s)
        rows.append([side, f"{medians[side]:.1f}", f"{min(walls_s):.1f} to {max(walls_s):.1f}", f"{cpu_s:.1f}"])
    bench_report.print_table(f"fit, {args.rollouts} rollouts", ["beside it", "wall s", "range", "CPU s"], rows)
    ratios = {"time_vs_quiet": medians["busy"] / medians["quiet"]}
    bench_report.print_ratios(ratios)
    bench_report.write_json(args.json, [asdict(cost) for cost in costs], ratios, rollouts=args.rollouts)


if __name__ == "__main__":
    main()
