"""The plan of the study and its kept results: what scripts/study.py writes and scripts/study_report.py reads.

Shapes: P problems, S seeds, K values of k.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from maxk_lightning.commands.evaluate.told import SAME, parse_told_ks
from maxk_lightning.evaluation.bootstrap import Floats
from maxk_lightning.evaluation.estimates import DISTINCT, Metric, distinct_at_k, ladder, per_problem
from maxk_lightning.evaluation.realised import PREFIX

CONFIGS = Path("configs/study")
BASE = "base"
SEEN = "seen"
"Control of a job: samples of the training problems."
PROGRAMS: Metric = "programs_at_k"
"Number of different programs among the fully correct of k samples; programs that differ in layout alone are one."
Split = Literal["validation", "test"]
Criterion = Literal["mean", "max_at_1"]
"Criterion of a learning rate: the mean of max@k over k = 1, 2, 4, ..., which favours no k, or max@1 alone."


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One policy: trained with one method, learning rate and seed, and evaluated on one split."""

    benchmark: str
    "Name of the benchmark in the plan."
    arm: str
    "Name of the arm in the plan; `base` is not trained."
    learning_rate: float
    "Learning rate; 0 for the base."
    seed: int
    "Seed of training and of the evaluation's samples."
    split: Split
    "Split on which it is evaluated."
    num_samples: int
    "Samples per problem."
    control: str = ""
    """What is changed after training: `towards-0.5` (weights half of the way back to the base), `temperature-0.8`, or
    `SEEN`."""

    @property
    def training(self) -> str:
        """Name the training that its policy is from."""
        return f"{self.arm}-lr{self.learning_rate:g}-seed{self.seed}"

    @property
    def name(self) -> str:
        """Name its files."""
        return f"{self.training}-{self.control}" if self.control else self.training

    @property
    def temperature(self) -> float | None:
        """Temperature of a control that samples at another one than training does."""
        return self._changed("temperature")

    @property
    def towards(self) -> float | None:
        """Share of the base's weights in a control between the base and what was trained."""
        return self._changed("towards")

    def _changed(self, kind: str) -> float | None:
        name, _, value = self.control.partition("-")
        return float(value) if name == kind else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The samples of a policy that was told one number of tries."""

    rewards: Mapping[str, Mapping[str, int]]
    "Counts, as in `Result`."
    summary: Mapping[str, float]
    "Other numbers of the evaluation, as in `Result`."
    correct: Mapping[str, Sequence[int]] = field(default_factory=dict)
    "As in `Result`."
    programs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    "As in `Result`."


@dataclass(frozen=True, kw_only=True)
class Result:
    """The kept result of a job."""

    job: Job
    "Job that was run."
    commit: str
    "Commit of the code."
    machine: Mapping[str, Any]
    "Machine it ran on."
    seconds: Mapping[str, float]
    "Wall clock of `fit` (since it was resumed, if it was) and `evaluate`, beside whatever else the machine did."
    rewards: Mapping[str, Mapping[str, int]]
    "Counts: problem -> reward -> samples with it."
    entropy_bins: Mapping[str, int]
    "Counts: bin of the entropy of a token -> tokens (Figure 2)."
    summary: Mapping[str, float]
    "Other numbers of the evaluation."
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    "Training curves: TensorBoard tag -> value per rollout."
    formed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    "Counts as in `rewards`, of the samples that ended before the limit and hold a program."
    blind: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    "Counts as in `rewards`, of the samples whose program never reads its arguments."
    realised: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    "Selector -> problem -> realised best-of-k at every k of `ks`."
    correct: Mapping[str, Sequence[int]] = field(default_factory=dict)
    "Problem -> fully correct samples of each behaviour, the most frequent first."
    programs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    "Problem -> fully correct samples of each program, the most frequent first."
    told: Mapping[str, Told] = field(default_factory=dict)
    """Told k -> the samples that were told it; none for an arm that is told nothing. Everything else here is then of
    the samples that were told the largest, and max@k and pass@k are of those that were told k, or the next below it."""

    @cached_property
    def rewards_of(self) -> dict[str, list[float]]:
        """List the rewards of the samples of each problem."""
        return _listed(self.rewards)

    @cached_property
    def ks(self) -> list[int]:
        """List 1, 2, 4, ... up to the samples per problem."""
        return ladder(self.job.num_samples)

    @cached_property
    def max_at_k_PK(self) -> Floats:
        """Estimate max@k of every problem, at every k of `ks`."""
        return self._per_problem("max_at_k")

    @cached_property
    def pass_at_k_PK(self) -> Floats:
        """Estimate pass@k of every problem, at every k of `ks`."""
        return self._per_problem("pass_at_k")

    def values_PK(self, metric: Metric) -> Floats:
        """Return a metric of every problem, at every k of `ks`.

        That is max@k, pass@k, distinct@k, `PROGRAMS`, or `realised:SELECTOR`.
        """
        if metric.startswith(PREFIX):
            return np.array([values for _, values in sorted(self.realised[metric.removeprefix(PREFIX)].items())])
        if metric in (DISTINCT, PROGRAMS):
            return self._per_problem(metric)
        return self.max_at_k_PK if metric == "max_at_k" else self.pass_at_k_PK

    def told_only(self, k: str) -> "Result":
        """The same of the samples that were told this k, at every k."""
        told = self.told[k]
        parts = {name: getattr(told, name) for name in ("rewards", "summary", "correct", "programs")}
        return replace(self, told={}, **parts)

    def _per_problem(self, metric: Metric) -> Floats:
        if not self.told:
            kinds = {DISTINCT: self.correct, PROGRAMS: self.programs}.get(metric)
            return per_problem(self.rewards_of, metric, self.ks) if kinds is None else self._distinct(kinds)
        values_of = {int(k): self.told_only(k)._per_problem(metric) for k in self.told}
        asked = [max(told_k for told_k in values_of if told_k <= k) for k in self.ks]
        return np.stack([values_of[told_k][:, place] for place, told_k in enumerate(asked)], axis=1)

    def _distinct(self, kinds: Mapping[str, Sequence[int]]) -> Floats:
        """Estimate the different kinds among the fully correct of k samples."""
        rewards_of = self.rewards_of
        return np.array(
            [distinct_at_k(kinds.get(problem, []), len(rewards_of[problem]), self.ks) for problem in rewards_of]
        )

    @property
    def entropy_counts(self) -> Counter[int]:
        """Count the tokens of each bin of entropy."""
        return Counter({int(bin_): count for bin_, count in self.entropy_bins.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table: its arms, seeds and comparisons."""

    benchmark: str
    "Name of the benchmark in the plan."
    seeds: Sequence[int]
    "Seeds with which every arm is trained."
    arms: Sequence[str]
    "Rows of the table."
    against: Sequence[str]
    "Arms against which every arm is tested, besides the arm it is tuned as if that is in the table."
    tuned_for: Criterion = "mean"
    "Criterion by which learning rates are chosen, on the validation problems."


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A policy and its problems. Options are those of the command line, by key."""

    policy: str
    "Base policy: directory, hub name or a built-in one."
    learning_rates: Sequence[float]
    "Tries of every arm that is tuned; a single one is taken without a try."
    train: Mapping[str, Any]
    "Options of `fit`."
    validation: Mapping[str, Any]
    "Options of `evaluate` on the problems that choose learning rates."
    test: Mapping[str, Any]
    "Options of `evaluate` on the problems of the tables."


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """The content of a plan.yaml."""

    configs: Path
    "Directory of the plan and of the YAML of each arm."
    common: Sequence[str]
    "Configurations under all arms, as paths from the directory of the plan; later ones are laid over earlier ones."
    page: Path
    "Page whose blocks the report fills in."
    results: Path
    "Directory of what is kept."
    tuning: Mapping[str, int]
    "Seed and samples per problem of the tries of a learning rate."
    tuning_options: Mapping[str, Any] = field(default_factory=dict)
    "Options of `fit` that shorten the tries."
    controls: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Arm -> `towards` (shares of the base's weights) and `temperature`: further evaluations on the test problems, of
    its first seeds in the table `main`; they cost no training."""
    control_seeds: int = 1
    "Number of these seeds."
    control_samples: int = 0
    "Samples per problem of the controls."
    seen_samples: int = 0
    """Samples per problem of the training problems, which every arm of the table `main` draws at its first seed: what
    it learnt, and not how far that carries; 0: none."""
    keeps_adapters: bool = False
    "Keep the adapter of every policy of the tables, and evaluate what is kept: `model.lora` of all arms."
    test: Mapping[str, int]
    "Samples per problem of the tables."
    select: str = ""
    "Selectors whose realised best-of-k is measured on the test problems, as for `evaluate --select`."
    quick: Mapping[str, Any]
    """The part of the table `main` that `--quick` runs: samples, seeds, arms, and options of `fit` that shorten it.
    With `split: validation` it is the tries of these arms at their chosen learning rates, which are short enough."""
    test_ks: Sequence[int]
    "Of all k of the tables, those that are tested."
    drawn_tables: Sequence[str]
    "Tables that have figures."
    grouped_tables: Sequence[str]
    "Tables of the built-in benchmark that are split by what makes problems hard."
    aged_tables: Sequence[str] = ()
    "Tables that have a figure over the age of rollouts, with which the labels of their arms end: `NAME, age 16`."
    benchmarks: Mapping[str, Benchmark]
    "Benchmarks by name."
    arms: Mapping[str, Mapping[str, Any]]
    """Label of each arm, its YAML as a path from the directory of the plan (`config`) if that is not ARM.yaml, further
    `options` of its `fit`, and whose learning rate it takes (`tuned_as`) if it is not tuned itself. `told_k` is of an
    arm that is told k: what `evaluate --told_k` tells it, `same` or a list that begins with 1."""
    tables: Mapping[str, Table]
    "Tables, in the order in which they are run."

    @property
    def quick_table(self) -> Table:
        """Return the part of the main table that `--quick` runs."""
        seeds = [self.tuning["seed"]] if self.quick_split == "validation" else self.quick["seeds"]
        return replace(self.tables["main"], seeds=seeds, arms=self.quick["arms"])

    @property
    def quick_split(self) -> Split:
        """Return the split on which `--quick` evaluates."""
        split: Split = self.quick.get("split", "test")
        return split

    @property
    def tuning_ks(self) -> list[int]:
        """List the k that a learning rate is chosen by: those of a try, also where there are more samples."""
        return ladder(self.tuning["num_samples"])

    @property
    def control_ks(self) -> list[int]:
        """List the k of tests that controls have samples for."""
        return [k for k in self.test_ks if k <= min(self.control_samples, self.test["num_samples"])]

    @property
    def selectors(self) -> list[str]:
        """List the selectors by name."""
        return self.select.split(",") if self.select else []

    def is_trained_further(self, job: Job) -> bool:
        """Whether a job is a try of a learning rate with the seed of a table, which trains the best one further."""
        seeds = {seed for table in self.tables.values() if table.benchmark == job.benchmark for seed in table.seeds}
        return job.split == "validation" and job.seed in seeds

    def label(self, arm: str) -> str:
        """Name an arm as tables and legends show it."""
        return str(self.arms[arm]["label"])

    def tuned_as(self, arm: str) -> str:
        """Name the arm whose learning rate it takes."""
        return str(self.arms[arm].get("tuned_as", arm))

    def config_of(self, arm: str) -> Path:
        """Find the YAML of an arm's method."""
        return self.configs / self.arms[arm].get("config", f"{arm}.yaml")

    def told_k(self, arm: str) -> str:
        """What its evaluation tells an arm, as words of the command line; nothing for one that is told nothing."""
        told = self.arms[arm].get("told_k", "")
        return told if isinstance(told, str) else ",".join(map(str, told))

    def options_of(self, arm: str) -> Mapping[str, Any]:
        """Options of `fit` that an arm lays over its YAML."""
        options: Mapping[str, Any] = self.arms[arm].get("options", {})
        return options


def read_plan(configs: Path = CONFIGS) -> StudyPlan:
    """Read the plan of a directory.

    Raises:
        ValueError: an arm of a table is unknown or has no YAML.
    """
    path = configs / "plan.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    tables = {name: Table(**table) for name, table in record["tables"].items()}
    benchmarks = {name: Benchmark(**benchmark) for name, benchmark in record["benchmarks"].items()}
    paths = {"configs": configs, "page": Path(record["page"]), "results": Path(record["results"])}
    plan = StudyPlan(**{**record, **paths, "tables": tables, "benchmarks": benchmarks})
    for name, table in tables.items():
        for arm in (*table.arms, *table.against):
            if arm not in plan.arms or (arm != BASE and not plan.config_of(arm).is_file()):
                raise ValueError(f"{path}: tables.{name}: {arm} is not under `arms`, or has no YAML")
    for arm in plan.arms:
        try:
            _check_told(plan, arm)
        except ValueError as error:
            raise ValueError(f"{path}: arms.{arm}: {error}") from error
    return plan


def _check_told(plan: StudyPlan, arm: str) -> None:
    told_k = plan.told_k(arm)
    if told_k not in ("", SAME) and 1 not in parse_told_ks(told_k, 0):
        raise ValueError(f"`told_k` is {told_k}, must be `{SAME}` or hold 1, with which k = 1 is asked for")
    if told_k and plan.select:
        raise ValueError("`told_k` does not go with `select`")


def _listed(counts_of: Mapping[str, Mapping[str, int]]) -> dict[str, list[float]]:
    """List the rewards of the samples of each problem, in the order of their ids."""
    return {
        problem: [reward for text, count in counts.items() for reward in [float(text)] * count]
        for problem, counts in sorted(counts_of.items())
    }


def path_of(results: Path, job: Job) -> Path:
    """Name the file that keeps the result of a job."""
    return results / job.benchmark / ("controls" if job.control else job.split) / f"{job.name}.json"


def write(results: Path, result: Result) -> None:
    """Keep a result; the file appears whole or not at all."""
    path = path_of(results, result.job)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(asdict(result), separators=(",", ":")) + "\n", encoding="utf-8")
    unfinished.replace(path)


@cache
def read(path: Path) -> Result:
    """Read a kept result, once per process: several tables share it and what is computed from it."""
    record = json.loads(path.read_text(encoding="utf-8"))
    told = {k: Told(**part) for k, part in record.get("told", {}).items()}
    return Result(**{**record, "job": Job(**record["job"]), "told": told})


def read_all(results: Path, benchmark: str, split: Split) -> list[Result]:
    """All kept results of a split, by name of their files."""
    return [read(path) for path in sorted((results / benchmark / split).glob("*.json"))]


def tuning_jobs(plan: StudyPlan, benchmark: str, arm: str) -> list[Job]:
    """The tries of a learning rate for an arm; one for the base, which has none. None where there is no choice."""
    rates = plan.benchmarks[benchmark].learning_rates
    if len(rates) == 1:
        return []
    rates = [0.0] if arm == BASE else rates
    return [Job(benchmark=benchmark, arm=arm, learning_rate=rate, split="validation", **plan.tuning) for rate in rates]


def controls_of(plan: StudyPlan, job: Job) -> list[Job]:
    """Further evaluations of the policy that a job trains."""
    main = plan.tables["main"]
    seeds = main.seeds[: plan.control_seeds]
    if job.control or job.split != "test" or job.benchmark != main.benchmark or job.seed not in seeds:
        return []
    changed = [
        replace(job, control=f"{kind}-{value:g}", num_samples=plan.control_samples)
        for kind, values in plan.controls.get(job.arm, {}).items()
        for value in values
    ]
    return [seen_job(plan, job), *changed] if plan.seen_samples and job.seed == seeds[0] else changed


def seen_job(plan: StudyPlan, job: Job) -> Job:
    """The evaluation of a job's policy on the problems of its training."""
    return replace(job, control=SEEN, num_samples=plan.seen_samples)


def tuning_score(plan: StudyPlan, result: Result, criterion: Criterion = "mean") -> float:
    """Higher is better."""
    ks = plan.tuning_ks if criterion == "mean" else [1]
    return float(result.max_at_k_PK[:, [result.ks.index(k) for k in ks]].mean())


def tuned_learning_rate(
    plan: StudyPlan, results: Path, benchmark: str, arm: str, criterion: Criterion = "mean"
) -> float | None:
    """The best of the tries; 0 for the base, None while a try is missing."""
    if arm == BASE:
        return 0.0
    jobs = tuning_jobs(plan, benchmark, plan.tuned_as(arm))
    if not jobs:
        return plan.benchmarks[benchmark].learning_rates[0]
    paths = [path_of(results, job) for job in jobs]
    if not all(path.is_file() for path in paths):
        return None
    return max(map(read, paths), key=lambda result: tuning_score(plan, result, criterion)).job.learning_rate


def by_problem_and_seed(results: Sequence[Result], k: int, metric: Metric = "max_at_k") -> Floats:
    """A metric of every problem and seed `[P, S]`, of results that differ in nothing but the seed."""
    return np.stack([result.values_PK(metric)[:, result.ks.index(k)] for result in results], axis=1)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], column: str = "---:") -> str:
    """A Markdown table whose first column is a label; the others are numbers, or text with column `---`."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|---{f'|{column}' * (len(heads) - 1)}|", *lines[1:]]) + "\n"
