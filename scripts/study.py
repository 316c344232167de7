"""The claim, tested: does training for max@k win at Best-of-N?

    python scripts/study.py                 # all tables of configs/study/plan.yaml; goes on where it was stopped
    python scripts/study.py --table main    # one of them
    python scripts/study.py --table main --arm grpo_3 --arm base       # these arms now, others another day
    python scripts/study.py --quick         # a reduced main table, held against the page of the plan
    python scripts/study.py --again grpo_3 --seed 1 --table main       # one job of it, beside what is kept of it
    python scripts/study.py --plan configs/study_smollm2 --policy DIR -- --data.train.path mbpp.jsonl   # another plan
    python scripts/study_report.py          # tables and figures of the page, without running

Every arm first tries the learning rates of the plan with a seed of their own and is evaluated on the validation
problems; the best rate is then used with the seeds of its tables and evaluated on the test problems. Where a table has
the seed of the tries, the best try is trained further (`train` of the plan then gives `trainer.max_epochs`). A job is
`fit`, `evaluate` and a small JSON under the plan's `results`; jobs whose JSON exists are not run again. In a clone all
exist: `--again` runs one of them in another directory, `--results DIR` all, tries of learning rates included.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from study_adapters import Training, adapter_path, keep_adapter, place_adapter, read_training
from study_again import sentences
from study_condense import condense, training_curves
from study_report import check_quick
from study_results import (
    BASE,
    CONFIGS,
    SEEN,
    Job,
    StudyPlan,
    Table,
    controls_of,
    path_of,
    read,
    read_plan,
    tuned_learning_rate,
    tuning_jobs,
    write,
)

import maxk_lightning.cli

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["maxk_lightning.commands.trainer", "maxk_lightning.commands.evaluate.policy"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Where a study works, and what the caller adds to its plan."""

    plan: StudyPlan
    "What to run."
    results: Path
    "Directory of what is kept."
    directory: Path
    "Directory of checkpoints, logs and samples."
    policy: str | None = None
    "Base policy in the place of the plan's: a local copy."
    options: Sequence[str] = ()
    "Further options of every `fit` and `evaluate`."
    fit_options: Sequence[str] = ()
    "Further options of every `fit`."

    def base(self, job: Job) -> str:
        """Name the policy that a job begins with."""
        return self.policy or self.plan.benchmarks[job.benchmark].policy

    def home(self, job: Job) -> Path:
        """Name the directory of a job's training."""
        return self.directory / job.benchmark / job.training

    def left(self, job: Job) -> list[Job]:
        """List what is not kept yet: the job itself, and further evaluations of its policy."""
        return [each for each in [job, *controls_of(self.plan, job)] if not path_of(self.results, each).is_file()]

    def out(self, job: Job) -> Path:
        """Name the directory of a job's samples."""
        return self.home(job) / "-".join(filter(None, (job.split, job.control)))


def run(job: Job, runner: Runner) -> None:
    """Train, evaluate and keep what matters, unless that was done before."""
    left = runner.left(job)
    if not left:
        return
    home = runner.home(job)
    home.mkdir(parents=True, exist_ok=True)
    policy, training = _trained(job, runner)
    for each in left:
        evaluating_from = time.monotonic()
        _evaluate(each, runner, policy)
        seconds = {"fit": training.seconds, "evaluate": time.monotonic() - evaluating_from}
        write(runner.results, condense(each, training.curves, runner.out(each), seconds))
    for name in ("towards",) if runner.plan.is_trained_further(job) else ("checkpoints", "towards"):
        shutil.rmtree(home / name, ignore_errors=True)


def _trained(job: Job, runner: Runner) -> tuple[str, Training]:
    """Train a policy, or find what is kept of its training; returns what `--policy` takes."""
    base, home = runner.base(job), runner.home(job)
    if job.arm == BASE:
        return base, Training(seconds=0.0, curves={})
    if not runner.plan.keeps_adapters or job.split != "test":
        return _train(job, runner)
    kept = adapter_path(runner.results, job)
    if not kept.is_dir():
        checkpoint, training = _train(job, runner)
        exported = home / "exported"
        shutil.rmtree(exported, ignore_errors=True)
        maxk(home / "export.log", "export", "--ckpt", checkpoint, "--adapter", "true", "--out", str(exported))
        keep_adapter(exported, kept, runner.plan.benchmarks[job.benchmark].policy, training)
    place_adapter(kept, home / "adapter", base)
    return str(home / "adapter"), read_training(kept)


def _train(job: Job, runner: Runner) -> tuple[str, Training]:
    """Train, or go on where a training was stopped; returns the checkpoint."""
    fitting_from = time.monotonic()
    home, benchmark = runner.home(job), runner.plan.benchmarks[job.benchmark]
    checkpoint = home / "checkpoints/last.ckpt"
    arm = ["--config", str(runner.plan.config_of(job.arm)), "--model.optimizer.lr", str(job.learning_rate)]
    arm += [*as_options(runner.plan.options_of(job.arm)), "--model.policy", runner.base(job)]
    arm += as_options(benchmark.train)
    seed = ["--seed_everything", str(job.seed), "--trainer.default_root_dir", str(home)]
    resumed = ["--ckpt_path", "last"] if checkpoint.is_file() else []
    shorter = as_options(runner.plan.tuning_options) if job.split == "validation" else []
    more = [*shorter, *runner.options, *runner.fit_options]
    maxk(home / "fit.log", "fit", *_common(runner.plan), *arm, *seed, *more, *resumed)
    seconds, curves = time.monotonic() - fitting_from, training_curves(home / "tensorboard")
    return str(checkpoint), Training(seconds=seconds, curves=curves)


def _evaluate(job: Job, runner: Runner, policy: str) -> None:
    home, benchmark, out = runner.home(job), runner.plan.benchmarks[job.benchmark], runner.out(job)
    log = home / f"{out.name}.log"
    if job.towards is not None:
        between = home / "towards" / f"{job.towards:g}"
        base = runner.base(job)
        if runner.plan.keeps_adapters:
            place_adapter(Path(policy), between, base, share=1 - job.towards)
        else:
            maxk(log, "export", "--ckpt", policy, "--towards", base, "--by", str(job.towards), "--out", str(between))
        policy = str(between)
    samples = ["--policy", policy, "--num_samples", str(job.num_samples), "--name", job.arm]
    samples += ["--out", str(out), "--seed_everything", str(job.seed)]
    if job.temperature is not None:
        samples += ["--rollout.eval_sampling.temperature", str(job.temperature)]
    if runner.plan.select and job.split == "test" and not job.control:
        samples += ["--select", runner.plan.select]
    told_k = runner.plan.told_k(job.arm)  # the template that tells it is the arm's
    samples += ["--config", str(runner.plan.config_of(job.arm)), "--told_k", told_k] if told_k else []
    problems = as_options(benchmark.test if job.split == "test" else benchmark.validation)
    if job.control == SEEN:
        problems += ["--split", "train"]
        problems += as_options({key: value for key, value in benchmark.train.items() if key.startswith("data.train")})
    maxk(log, "evaluate", *_common(runner.plan), *samples, *problems, *runner.options)


def _common(plan: StudyPlan) -> list[str]:
    return [word for name in plan.common for word in ("--config", str(plan.configs / name))]


def as_options(values: Mapping[str, object]) -> list[str]:
    """Words of a command line for options by key."""
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def maxk(log: Path, *arguments: str) -> None:
    """Run a command in a process of its own, a fork of one that has imported everything: imports take seconds.

    Raises:
        RuntimeError: it failed.
    """
    process = FORKS.Process(target=_command, args=(arguments, log))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"maxk_lightning {' '.join(arguments)} ended with {process.exitcode}, see {log}")


def _command(arguments: Sequence[str], log: Path) -> None:
    threading.Thread(target=_end_with_study, daemon=True).start()
    with log.open("a", encoding="utf-8") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
        sys.argv = ["maxk_lightning", *arguments]
        maxk_lightning.cli.main()


def _end_with_study() -> None:
    """Die when the study does, however that ends: the parent of this process is the server that forks, which stays."""
    study = multiprocessing.parent_process()
    assert study is not None
    study.join()
    os.kill(os.getpid(), signal.SIGKILL)


def test_jobs(plan: StudyPlan, table: Table, num_samples: int, results: Path) -> Iterator[Job]:
    """List the jobs on the test problems, seed by seed, so that a run cut short has all arms."""
    for seed in table.seeds:
        for arm in table.arms:
            rate = tuned_learning_rate(plan, results, table.benchmark, arm, table.tuned_for)
            if rate is None:
                tries = results / table.benchmark / "validation"
                raise ValueError(f"{arm}: the tries of its learning rate are not all under {tries}")
            yield Job(
                benchmark=table.benchmark,
                arm=arm,
                learning_rate=rate,
                seed=seed,
                split="test",
                num_samples=num_samples,
            )


def quick_jobs(plan: StudyPlan, results: Path) -> Iterator[Job]:
    """List the jobs of `--quick`, at the learning rates that the kept tries chose."""
    table = plan.quick_table
    if plan.quick_split == "test":
        yield from test_jobs(plan, table, plan.quick["num_samples"], results)
        return
    for arm in table.arms:
        rate = tuned_learning_rate(plan, results, table.benchmark, arm, table.tuned_for)
        yield from (job for job in tuning_jobs(plan, table.benchmark, arm) if job.learning_rate == rate)


def run_all(jobs: Sequence[Job], runner: Runner, num_jobs: int) -> int:
    """Run the jobs that are left, several at a time; returns how many those were.

    Raises:
        RuntimeError: some failed; the others were run.
    """
    results = runner.results
    left = [job for job in jobs if runner.left(job)]
    print(f"{len(jobs)} jobs, {len(left)} of them left", flush=True)
    failures = []
    with ThreadPoolExecutor(num_jobs) as pool:
        futures = {pool.submit(run, job, runner): job for job in left}
        for future in as_completed(futures):
            job, error = futures[future], future.exception()
            if error is None:
                print(f"{job.benchmark} {job.split} {job.name}: {read(path_of(results, job)).seconds}", flush=True)
            else:
                failures.append(f"{job.benchmark} {job.split} {job.name}: {error!r}")
                print(failures[-1], flush=True)
    if failures:
        raise RuntimeError("\n".join([f"{len(failures)} of {len(left)} jobs failed", *failures]))
    return len(left)


def compare(jobs: Sequence[Job], runner: Runner, table: str) -> None:
    """Let `compare` test the arms of every seed, problem by problem, where their samples are on this machine.

    A kept report that is newer than all samples stays. Arms that are told k have no set of samples for all k.
    """
    jobs = [job for job in jobs if not runner.plan.told_k(job.arm)]
    for seed in dict.fromkeys(job.seed for job in jobs):
        evaluations = [runner.home(job) / job.split for job in jobs if job.seed == seed]
        samples = [evaluation / "samples.jsonl" for evaluation in evaluations]
        out = runner.directory / f"compare-{table}-seed{seed}"
        kept = runner.results / f"{out.name}.md"
        if not all(path.is_file() for path in samples):
            continue
        if not kept.is_file() or kept.stat().st_mtime < max(path.stat().st_mtime for path in samples):
            maxk(out.with_suffix(".log"), "compare", *map(str, evaluations), "--out", str(out))
            shutil.copy(out / "report.md", kept)


def run_table(name: str, runner: Runner, num_jobs: int, arms: Sequence[str] = ()) -> None:
    """Tune, train, evaluate and compare the arms of a table; with `arms` only these, without comparing."""
    plan = runner.plan
    table = plan.tables[name]
    if arms:
        table = replace(table, arms=[arm for arm in table.arms if arm in arms])
    tuned = dict.fromkeys(map(plan.tuned_as, table.arms))
    print(f"{name}: learning rates", flush=True)
    num_run = run_all([job for arm in tuned for job in tuning_jobs(plan, table.benchmark, arm)], runner, num_jobs)
    print(f"{name}: test problems", flush=True)
    jobs = list(test_jobs(plan, table, plan.test["num_samples"], runner.results))
    num_run += run_all(jobs, runner, num_jobs)
    if not arms:
        compare(jobs, runner, name)
    if not num_run and jobs:
        job = jobs[-1]
        print(
            f"{name}: all results are kept under {runner.results}, nothing was run; --again {job.arm} --seed {job.seed}"
            f" --table {name} runs one job again and compares, --results DIR runs all again"
        )


def run_again(arm: str, seed: int, table: str, runner: Runner) -> None:
    """Run one job of a table in another directory, and print its result beside the kept one.

    Raises:
        ValueError: the table has no such job, or nothing is kept of it.
    """
    plan, kept = runner.plan, runner.results
    planned = plan.tables[table]
    if arm not in planned.arms or seed not in planned.seeds:
        raise ValueError(
            f"table {table} has no {arm} with seed {seed}; its arms are {', '.join(planned.arms)}, its seeds "
            f"{', '.join(map(str, planned.seeds))}"
        )
    jobs = test_jobs(plan, replace(planned, arms=[arm], seeds=[seed]), plan.test["num_samples"], kept)
    job = next(jobs)
    if not path_of(kept, job).is_file():
        raise ValueError(f"nothing is kept of {arm} with seed {seed}: there is no {path_of(kept, job)}")
    directory = runner.directory.with_name(f"{runner.directory.name}_again")
    again = replace(runner, plan=_without_controls(plan), results=directory / "results", directory=directory)
    finished = path_of(again.results, job)
    if finished.is_file():  # one that was stopped goes on, one that ended is run anew
        finished.unlink()
        shutil.rmtree(again.home(job))
    print(f"running {job.benchmark} {job.name} under {again.home(job)}: fit.log, test.log", flush=True)
    run(job, again)
    print(*sentences(read(finished), read(path_of(kept, job)), plan), sep="\n")


def _without_controls(plan: StudyPlan) -> StudyPlan:
    """The same plan for a run that only compares jobs with the kept ones."""
    return replace(plan, controls={}, seen_samples=0)


def run_quick(runner: Runner, num_jobs: int) -> None:
    """Run the reduced main table, and hold it against what is kept."""
    plan, kept = runner.plan, runner.results
    directory = runner.directory.with_name(f"{runner.directory.name}_quick")
    shorter = as_options(plan.quick.get("options", {}))
    quick = replace(
        runner,
        plan=_without_controls(plan),
        results=directory / "results",
        directory=directory,
        fit_options=shorter,
    )
    run_all(list(quick_jobs(plan, kept)), quick, num_jobs)
    check_quick(plan, quick.results, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=CONFIGS, help="directory of plan.yaml and of a YAML per arm")
    parser.add_argument("--table", default=None, help="only this table of the plan")
    parser.add_argument("--arm", metavar="ARM", action="append", default=[], help="only this arm; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a reduced main table, with the tuned learning rates")
    parser.add_argument("--again", metavar="ARM", default=None, help="run one kept job again, with --seed and --table")
    parser.add_argument("--seed", type=int, default=None, help="seed of that job")
    parser.add_argument("--policy", default=None, help="base policy in the place of the plan's: a local copy")
    parser.add_argument("--results", type=Path, default=None, help="what is kept; default: the plan's `results`")
    parser.add_argument("--directory", type=Path, default=None, help="for logs and samples; default: runs/PLAN")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="policies trained at the same time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each of them")
    parser.add_argument("options", nargs="*", help="behind `--`: further options of every `fit` and `evaluate`")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes to come
    plan = read_plan(args.plan)
    if args.table not in (None, *plan.tables):
        parser.error(f"--table is {args.table}, must be one of {', '.join(plan.tables)}")
    for arm in args.arm:
        if arm not in plan.arms:
            parser.error(f"--arm is {arm}, must be one of {', '.join(plan.arms)}")
    if (args.again is None) != (args.seed is None) or (args.again and args.table is None):
        parser.error("--again ARM needs --seed and --table, and --seed needs --again")
    directory = args.directory or Path("runs") / args.plan.name
    results = args.results or plan.results
    runner = Runner(plan=plan, results=results, directory=directory, policy=args.policy, options=args.options)
    if args.quick:
        run_quick(runner, args.jobs)
        return
    if args.again:
        try:
            run_again(args.again, args.seed, args.table, runner)
        except ValueError as error:
            parser.error(str(error))
        return
    for name in plan.tables if args.table is None else [args.table]:
        run_table(name, runner, args.jobs, args.arm)
    print("now: python scripts/study_report.py")


if __name__ == "__main__":
    main()
