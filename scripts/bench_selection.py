"""What choosing one of 128 answers costs beyond sampling them, per problem.

    python scripts/bench_selection.py --json bench_selection.json

Samples 128 programs for each of 16 problems of the built-in benchmark `vague` once, with 2 of 8 tests public. Then
every selector chooses, problem by problem as a user waits for it, and all problems at once as `evaluate --select`
does. The CPU time is that of all processes. Ratios, higher is better:
  sampling_vs_ORDER   seconds of sampling a problem over seconds of choosing by ORDER, problem by problem
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import bench_report
from bench_sandbox import Cost, measured

from maxk_lightning.data import Builtin
from maxk_lightning.evaluation import load
from maxk_lightning.evaluation.runs import Run
from maxk_lightning.rewards import UnitTestReward
from maxk_lightning.selection import Candidate, choose, parse_selector
from maxk_lightning.types import Problem

ORDERS = ("public", "agreement", "public+agreement")
ALL = "all at once"


def sampled(num_problems: int, num_samples: int, out: Path) -> Run:
    """Let `evaluate` sample the base policy."""
    options = {
        "config": "configs/tiny.yaml",
        "policy": "builtin-vague",
        "num_samples": num_samples,
        "data.test.variant": "vague",
        "data.test.limit": num_problems,
        "out": out,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, "-m", "maxk_lightning", "evaluate", *words], check=True)
    (run,) = load(out)
    return run


def costs_of(order: str, problems: list[Problem], groups: list[list[Candidate]]) -> dict[str, Cost]:
    """Cost of choosing for each problem by itself, then for all at once, by workers that have run something."""
    with UnitTestReward() as reward:
        selector = parse_selector(order, reward, "order")

        def choose_for(problems: list[Problem], groups: list[list[Candidate]]) -> None:
            for seen in selector.observe(problems, groups):
                choose(seen)

        choose_for(problems[:1], [groups[0][:2]])
        costs = {
            problem.id: measured(lambda problem=problem, group=group: choose_for([problem], [group]))
            for problem, group in zip(problems, groups, strict=True)
        }
        return {**costs, ALL: measured(lambda: choose_for(problems, groups))}


def main() -> None:
    """Sample, choose, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--num_samples", type=int, default=128)
    bench_report.add_json_option(parser)
    args = parser.parse_args()
    problems = list(Builtin("test", limit=args.problems, variant="vague", num_public=2).load())
    with tempfile.TemporaryDirectory() as out:
        run = sampled(len(problems), args.num_samples, Path(out))
        groups = [[Candidate(text=each.completion) for each in run.samples[problem.id]] for problem in problems]
        sampling_s = run.summary.seconds.generating / len(problems)
    costs = {order: costs_of(order, problems, groups) for order in ORDERS}
    rows, ratios = [["sampling", f"{sampling_s:.2f}", "", "", ""]], {}
    for order, of_order in costs.items():
        *by_problem, together = of_order.values()
        walls_s = [cost.wall_s for cost in by_problem]
        cpu_s = statistics.mean(cost.cpu_s for cost in by_problem)
        rows.append([order, *(f"{s:.2f}" for s in (statistics.mean(walls_s), max(walls_s), cpu_s))])
        rows[-1].append(f"{together.wall_s / len(problems):.2f}")
        ratios[f"sampling_vs_{order}"] = sampling_s / statistics.mean(walls_s)
    num_programs = statistics.mean(len({candidate.text for candidate in group}) for group in groups)
    bench_report.print_table(
        f"seconds per problem, {args.num_samples} candidates of which {num_programs:.0f} differ",
        ["choosing by", "one by one", "slowest", "CPU", ALL],
        rows,
    )
    bench_report.print_ratios(ratios)
    kept = {order: {name: asdict(cost) for name, cost in of_order.items()} for order, of_order in costs.items()}
    bench_report.write_json(args.json, [kept], ratios, sampling_s=sampling_s, num_programs=num_programs)


if __name__ == "__main__":
    main()
