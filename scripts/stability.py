"""Which objectives hold on a real language model: SmolLM2-135M-Instruct on MBPP, every optimizer step looked at.

    python scripts/stability.py --policy "$(scripts/get_smollm2.sh)" --mbpp mbpp.jsonl     # local copies; or the hub's
    python scripts/stability.py --report       # the table of docs/stability.md from what is kept, without running

Every arm of configs/stability is trained with each learning rate for five rollouts of three optimizer steps. A run
that has ended is kept as a small JSON and is not made again, so a study that was stopped goes on. The last column of
the table says whether every step held.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from study_report import filled

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results/stability"
PAGE = ROOT / "docs/stability.md"
BOUNDED = ("grpo", "max_at_k", "off_policy_bon", "exact_max_at_k", "set_advantage")
UNBOUNDED = ("off_policy_bon_unbounded", "exact_max_at_k_unbounded")
LEARNING_RATES = (1e-5, 5e-6)
NUM_PPO_ITERATIONS = 3
LARGEST = 10.0
"A loss or gradient norm from here on counts as broken."
TAGS = ("loss", "grad_norm", "log_ratio_std", "zero_credit_fraction", "skipped_steps", "credit_max", "engine_gap")
"Scalars `train/...` that are kept of every optimizer step."


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub name or directory")
    parser.add_argument("--mbpp", default="google-research-datasets/mbpp", help="hub name, or path of mbpp.jsonl")
    parser.add_argument("--arms", nargs="*", default=[*BOUNDED, *UNBOUNDED])
    parser.add_argument("--learning_rates", nargs="*", type=float, default=LEARNING_RATES)
    parser.add_argument("--results", type=Path, default=RESULTS, help="what is kept")
    parser.add_argument("--report", action="store_true", help="write the table only")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for learning_rate in options.learning_rates:
        for arm in options.arms:
            path = options.results / f"{arm}_{learning_rate:.0e}.json"
            if not path.is_file() and not options.report:
                print(f"{arm}, learning rate {learning_rate:.0e}", flush=True)
                path.write_text(json.dumps(run(arm, learning_rate, options.policy, options.mbpp), indent=1) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), {"table": table(read_results(options.results))}))


def read_results(results: Path) -> list[dict]:
    """Everything that is kept."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


def run(arm: str, learning_rate: float, policy: str, mbpp: str) -> dict[str, object]:
    """Train an arm, and return what every optimizer step logged."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "maxk_lightning", "fit"]
        for config in ("configs/smollm2.yaml", "configs/stability/common.yaml", f"configs/stability/{arm}.yaml"):
            command += ["--config", str(ROOT / config)]
        command += ["--model.policy", policy, "--data.train.init_args.path", mbpp]
        command += ["--model.optimizer.init_args.lr", str(learning_rate), "--trainer.default_root_dir", home]
        command += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", home]
        log = Path(home, "fit.log")
        with log.open("w") as output:
            ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        (metrics,) = Path(home).rglob("metrics.csv")
        steps = read_steps(metrics)
        if ended.returncode != 0:
            print(log.read_text()[-2000:], file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "arm": arm,
        "learning_rate": learning_rate,
        "exit_status": ended.returncode,
        "commit": commit.stdout.strip(),
        "num_cores": os.cpu_count(),
        "steps": steps,
    }


def read_steps(metrics: Path) -> list[dict[str, float]]:
    """The kept scalars of every optimizer step, from a CSV logger's file."""
    with metrics.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("train/loss")]
    return [{tag: float(row[f"train/{tag}"] or "nan") for tag in TAGS if f"train/{tag}" in row} for row in rows]


def table(results: Sequence[dict]) -> str:
    """Markdown: a row per arm and learning rate, the bounded ones first."""
    lines = [
        "| arm | learning rate | steps | with credit | largest abs(loss) | largest gradient norm | log rho, first "
        "iterations | log rho, last iterations | largest credit | skipped | held |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    arms = [*BOUNDED, *UNBOUNDED]
    ordered = sorted(results, key=lambda result: (arms.index(result["arm"]), -result["learning_rate"]))
    return "\n".join([*lines, *map(_row, ordered), ""])


def _row(result: dict) -> str:
    steps = result["steps"]
    with_credit = [step for step in steps if step["zero_credit_fraction"] < 1]
    first, last = steps[::NUM_PPO_ITERATIONS], steps[NUM_PPO_ITERATIONS - 1 :: NUM_PPO_ITERATIONS]
    loss = _largest(abs(step["loss"]) for step in steps)
    norm = _largest(step["grad_norm"] for step in steps)
    spread = _largest(step["log_ratio_std"] for step in first)
    num_skipped = int(sum(step["skipped_steps"] for step in steps))
    has_held = result["exit_status"] == 0 and max(loss, norm) < LARGEST and spread == 0 and num_skipped == 0
    cells = (
        result["arm"],
        f"{result['learning_rate']:.0e}",
        str(len(steps)),
        str(len(with_credit)),
        f"{loss:.3g}",
        f"{norm:.3g}",
        f"{spread:g}",
        f"{min(step['log_ratio_std'] for step in last):.2f} to {_largest(step['log_ratio_std'] for step in last):.2f}",
        f"{_largest(step['credit_max'] for step in steps):.3g}",
        str(num_skipped),
        "yes" if has_held else "**no**",
    )
    return f"| {' | '.join(cells)} |"


def _largest(values: object) -> float:
    """Largest of some numbers; infinite where one is not finite."""
    return max(value if math.isfinite(value) else math.inf for value in values)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
