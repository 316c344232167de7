"""The leaderboard of the built-in benchmark `vague`: processor time to a policy with a good first and best answer.

    python scripts/leaderboard.py --name "MaxAtK x CISPO, k = 4" --config configs/study/max_at_k_k4.yaml -- \\
        --model.optimizer.lr 1e-4                 # one entry: train, check, keep, write the table
    python scripts/leaderboard.py --report        # the table of docs/leaderboard.md from what is kept, without running

An entry is trained by `fit` in one go, with a checkpoint every so many rollouts. The processor time of `fit`, of all
its processes, start included, is read when a checkpoint appears. Then the checkpoints are evaluated in order on the
validation problems, which costs the entry nothing, until one reaches the goal; that one is sampled on the test
problems too. docs/leaderboard.md has the rules.
"""

import argparse
import ctypes
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study_condense import commit, machine
from study_report import filled
from study_results import markdown_table

from maxk_lightning.evaluation import load
from maxk_lightning.evaluation.estimates import estimates

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results/leaderboard.json"
PAGE = ROOT / "docs/leaderboard.md"
COMMON = (
    *("--config", "configs/study/common.yaml", "--model.policy", "builtin-vague"),
    *("--data.train.variant", "vague", "--rollout.reward.cache_file", "null"),
)
"Of every `fit`: the study's budget. Verdicts of earlier runs would make an entry look faster."
PROBLEMS = (
    "--config",
    "configs/study/common.yaml",
    "--data.test.variant",
    "vague",
    "--rollout.reward.cache_file",
    "null",
)
"Of every `evaluate`."
TEST_SAMPLES = 256
"Samples per test problem, as in docs/results.md."
POLL_S = 0.2
"Seconds between two looks for a new checkpoint."
SUBREAPER = 36
"PR_SET_CHILD_SUBREAPER of prctl(2)."
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CHECKPOINT = re.compile(r"epoch=(\d+)-step=(\d+)\.ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What an entry has to reach, both at the same checkpoint, on the validation problems."""

    max_at_1: float = 0.38
    "Mean reward of one sample."
    max_at_64: float = 0.95
    "Best of 64."
    num_samples: int = 128
    "Samples per problem that both are estimated from."


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A checkpoint, evaluated."""

    num_rollouts: int
    "Rollouts that it was trained on."
    num_steps: int
    "Optimizer steps."
    cpu_s: float
    "Processor time of `fit` and all its processes up to it, user and system."
    wall_s: float
    "Wall clock up to it, beside whatever else the machine did."
    max_at_1: float
    "On the validation problems."
    max_at_64: float
    "Likewise; of max@n where n is smaller, in a trial run."


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One measured run, as docs/results/leaderboard.json keeps it."""

    name: str
    "Of the method."
    configs: Sequence[str]
    "Configurations laid over the common one."
    options: Sequence[str]
    "Options of `fit` after them."
    seed: int
    "Seed of training and evaluation."
    every: int
    "Rollouts between two checkpoints."
    first: int
    "Rollouts below which no checkpoint was evaluated."
    threads: int
    "Threads of torch."
    date: str
    "Day of the run, UTC."
    commit: str
    "Of the code."
    machine: dict[str, Any]
    "Processor, cores and version of torch."
    goal: Goal
    "What was to be reached."
    checks: Sequence[Check]
    "Checkpoints that were evaluated, up to the first that reached the goal."
    has_reached: bool
    "Whether the last of them did."
    test: dict[str, float] = field(default_factory=dict)
    "max@1 and max@64 of that checkpoint on the test problems; nothing where the goal was not reached."

    @property
    def command(self) -> str:
        """The command that runs it again."""
        words = ["python", "scripts/leaderboard.py", "--name", self.name]
        words += [word for path in self.configs for word in ("--config", path)]
        words += ["--seed", self.seed, "--every", self.every, "--first", self.first, "--threads", self.threads]
        return shlex.join(map(str, [*words, *(["--", *self.options] if self.options else [])]))


def run(
    name: str,
    configs: Sequence[str],
    options: Sequence[str],
    home: Path,
    *,
    goal: Goal = Goal(),
    seed: int = 1,
    every: int = 8,
    first: int = 0,
    threads: int = 1,
    problems: Sequence[str] = (),
) -> Entry:
    """Train and check one entry in a new directory.

    Args:
        name: Of the method.
        configs: YAML files of its method.
        options: Further options of `fit`.
        home: Directory for checkpoints, logs and samples; must not exist.
        goal: What is to be reached.
        seed: Of everything.
        every: Rollouts between two checkpoints.
        first: Checkpoints of fewer rollouts are not evaluated, and cannot count.
        threads: Of torch.
        problems: Further options of every `evaluate`.

    Raises:
        ValueError: `home` exists.
        RuntimeError: a command failed.
    """
    if home.exists():
        raise ValueError(f"--directory: {home} exists; a measurement begins in a new one")
    home.mkdir(parents=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    arm = [word for path in configs for word in ("--config", path)]
    saved = ["--checkpoint.save_top_k", "-1", "--checkpoint.every_n_epochs", str(every)]
    fit = [*COMMON, *arm, "--seed_everything", str(seed), "--trainer.default_root_dir", str(home), *saved, *options]
    made_at = commit()
    checks: list[Check] = []
    test: dict[str, float] = {}
    for path, num_rollouts, num_steps, cpu_s, wall_s in list(train(fit, home)):
        if num_rollouts < first:
            continue
        found = evaluate(path, "validation", goal.num_samples, seed, home, problems)
        check = Check(num_rollouts=num_rollouts, num_steps=num_steps, cpu_s=cpu_s, wall_s=wall_s, **found)
        checks.append(check)
        print(f"rollout {num_rollouts}: {cpu_s / 60:.1f} CPU minutes, {found}", flush=True)
        if is_reached(check, goal):
            test = evaluate(path, "test", min(TEST_SAMPLES, 2 * goal.num_samples), seed, home, problems)
            break
    return Entry(
        name=name,
        configs=list(configs),
        options=list(options),
        seed=seed,
        every=every,
        first=first,
        threads=threads,
        date=datetime.now(UTC).date().isoformat(),
        commit=made_at,
        machine=machine(),
        goal=goal,
        checks=checks,
        has_reached=bool(checks) and is_reached(checks[-1], goal),
        test=test,
    )


def is_reached(check: Check, goal: Goal) -> bool:
    """Whether a checkpoint reaches both numbers of the goal."""
    return check.max_at_1 >= goal.max_at_1 and check.max_at_64 >= goal.max_at_64


def train(options: Sequence[str], home: Path) -> Iterator[tuple[Path, int, int, float, float]]:
    """Run `fit`; yields (checkpoint, rollouts, optimizer steps, CPU seconds, wall-clock seconds) as they appear.

    Raises:
        RuntimeError: `fit` failed.
    """
    before, started = cpu_seconds(), time.monotonic()
    seen: set[Path] = set()
    log = home / "fit.log"
    with adopted_orphans(), log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "maxk_lightning", "fit", *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while True:
            has_ended = process.poll() is not None
            for path in sorted((home / "checkpoints").glob("epoch=*.ckpt"), key=_rollouts_and_steps):
                if path not in seen:
                    seen.add(path)
                    yield path, *_rollouts_and_steps(path), cpu_seconds() - before, time.monotonic() - started
            if has_ended:
                break
            time.sleep(POLL_S)
    if process.returncode:
        raise RuntimeError(f"fit ended with {process.returncode}, see {log}")


def _rollouts_and_steps(path: Path) -> tuple[int, int]:
    match = CHECKPOINT.fullmatch(path.name)
    assert match, path
    return int(match[1]) + 1, int(match[2])


@contextmanager
def adopted_orphans() -> Iterator[None]:
    """Be the parent of every descendant whose own parent ends meanwhile."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(SUBREAPER, 0, 0, 0, 0)


def cpu_seconds() -> float:
    """Processor time, user and system, of all descendants of this process, living or ended.

    Within `adopted_orphans` this is all that a run started, however its processes end.
    """
    parent_of: dict[int, int] = {}
    ticks_of: dict[int, int] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(directory.name)
        parent_of[pid], ticks_of[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    own = os.getpid()
    ended = os.times()
    total = ended.children_user + ended.children_system
    for pid in parent_of:
        above = parent_of[pid]
        while above in parent_of and above != own:
            above = parent_of[above]
        total += ticks_of[pid] / TICKS_PER_S if above == own else 0.0
    return total


def evaluate(
    checkpoint: Path, split: str, num_samples: int, seed: int, home: Path, problems: Sequence[str] = ()
) -> dict[str, float]:
    """Sample a checkpoint, and estimate max@1 and max@64 (max@n for n below 64).

    Raises:
        RuntimeError: `evaluate` failed.
    """
    out = home / f"{checkpoint.stem}-{split}"
    words = ["--policy", str(checkpoint), "--num_samples", str(num_samples), "--out", str(out)]
    words += ["--data.test.split", split, "--seed_everything", str(seed), *problems]
    log = out.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "maxk_lightning", "evaluate", *PROBLEMS, *words]
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        raise RuntimeError(f"evaluate ended with {ended.returncode}, see {log}")
    (measured,) = load(out)
    value_of = {point.k: point.value for point in estimates(measured.rewards, "max_at_k")}
    return {"max_at_1": value_of[1], "max_at_64": value_of[min(64, num_samples)]}


def read_entries(path: Path = RESULTS) -> list[Entry]:
    """Everything that is kept; nothing where there is no file."""
    records = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [
        Entry(**{**record, "goal": Goal(**record["goal"]), "checks": [Check(**check) for check in record["checks"]]})
        for record in records
    ]


def keep(entry: Entry, path: Path = RESULTS) -> None:
    """Add an entry to what is kept; the file appears whole or not at all."""
    records = [asdict(each) for each in (*read_entries(path), entry)]
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def table(entries: Sequence[Entry]) -> str:
    """The leaderboard: those that reached the goal, the fastest first, then the others."""
    heads = ["entry", "seed", "CPU minutes", "rollouts", "validation max@1, max@64"]
    heads += ["test max@1, max@64", "date", "commit", "machine"]
    ranked = sorted(entries, key=lambda entry: (not entry.has_reached, entry.checks[-1].cpu_s))
    return markdown_table(heads, [_row(entry) for entry in ranked], "---")


def _row(entry: Entry) -> list[str]:
    last = entry.checks[-1]
    minutes = f"{last.cpu_s / 60:.1f}"
    return [
        entry.name,
        str(entry.seed),
        f"**{minutes}**" if entry.has_reached else f"not within {minutes}",
        str(last.num_rollouts),
        f"{last.max_at_1:.3f}, {last.max_at_64:.3f}",
        f"{entry.test['max_at_1']:.3f}, {entry.test['max_at_64']:.3f}" if entry.test else "-",
        entry.date,
        f"`{entry.commit}`",
        f"{entry.machine['processor']}, {entry.machine['cores']} cores, torch {entry.machine['torch']}",
    ]


def commands(entries: Sequence[Entry]) -> str:
    """A code block with the command of every entry, in the order in which they were run."""
    return "\n".join(["```bash", *dict.fromkeys(entry.command for entry in entries), "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="of the method, as the table shows it")
    parser.add_argument("--config", action="append", default=[], help="YAML of the method; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=8, help="rollouts between two checkpoints")
    parser.add_argument("--first", type=int, default=0, help="evaluate no checkpoint of fewer rollouts")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--directory", type=Path, help="for checkpoints and samples; default: under runs/leaderboard")
    parser.add_argument("--report", action="store_true", help="write the table only")
    parser.add_argument("options", nargs="*", help="behind `--`: further options of `fit`")
    args = parser.parse_args()
    if not args.report:
        if not args.name:
            parser.error("--name is missing: what the table shall call the entry")
        words = re.sub(r"\W+", "-", args.name).strip("-")
        home = args.directory or ROOT / "runs/leaderboard" / f"{words}-seed{args.seed}"
        settings = {"seed": args.seed, "every": args.every, "first": args.first, "threads": args.threads}
        keep(run(args.name, args.config, args.options, home, **settings))
    entries = read_entries()
    PAGE.write_text(filled(PAGE.read_text(), {"table": table(entries), "commands": commands(entries)}))


if __name__ == "__main__":
    main()
