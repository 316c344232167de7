"""The things that are compared: the outputs of `evaluate`, and the paper's published numbers as if they were runs."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maxk_lightning.evaluation.estimates import DISTINCT, Estimate, Metric, rewards_of
from maxk_lightning.evaluation.prediction import PREDICTED
from maxk_lightning.evaluation.realised import PREFIX, Realised, read_realised
from maxk_lightning.evaluation.samples import Sample, by_problem, read_samples
from maxk_lightning.evaluation.summary import Summary, read_summary
from maxk_lightning.records import read_records, take
from maxk_lightning.types import Problem

PAPER_TABLES = Path(__file__).parent / "paper_tables.csv"
PAPER_METRICS: Mapping[str, Metric] = {"max@k": "max_at_k", "pass@k": "pass_at_k"}


STATEMENTS = "problems.jsonl"
"Id and statement of the problems of an output."


@dataclass(frozen=True)
class Run:
    """One output of `evaluate`; samples are read when something needs them."""

    path: Path
    "Directory of the output."
    summary: Summary
    "Content of its summary.json."

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return self.summary.name

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return self.summary.benchmark

    def curve(self, metric: Metric) -> Sequence[Estimate]:
        """Return the points over k; none of what was not measured, nor beyond n if it was not asked for."""
        if metric.startswith(PREFIX):
            realised = self.realised.get(metric.removeprefix(PREFIX))
            return () if realised is None else realised.curve
        if metric.startswith(PREDICTED):
            is_max = metric == f"{PREDICTED}max_at_k"
            return self.summary.predicted_max_at_k if is_max else self.summary.predicted_pass_at_k
        if metric == DISTINCT:
            return self.summary.distinct_at_k
        return self.summary.max_at_k if metric == "max_at_k" else self.summary.pass_at_k

    @cached_property
    def realised(self) -> Mapping[str, Realised]:
        """Read what selectors realised of max@k, by name."""
        return read_realised(self.path)

    @cached_property
    def samples(self) -> Mapping[str, Sequence[Sample]]:
        """Read the samples of every problem."""
        return by_problem(read_samples(self.path / "samples.jsonl"))

    @cached_property
    def rewards(self) -> Mapping[str, Sequence[float]]:
        """Collect the rewards of the scored samples of every problem."""
        return rewards_of(self.samples)

    @cached_property
    def statements(self) -> Mapping[str, str]:
        """Read the statement of every problem; none where the output does not have them."""
        path = self.path / STATEMENTS
        return dict(pair for _, pair in read_records(path, _statement)) if path.is_file() else {}

    @property
    def solve_rates(self) -> Mapping[str, float]:
        """Compute the share of fully correct samples of every problem that has a scored one."""
        return {problem.id: problem.solve_rate for problem in self.summary.problems if problem.num_samples}

    @property
    def entropy_counts(self) -> Mapping[int, int]:
        """Count the tokens in each bin of entropy; none where the engine gave no entropies."""
        total: Counter[int] = Counter()
        for group in self.samples.values():
            for sample in group:
                total.update(sample.entropy_counts)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCurves:
    """Curves that come from no single set of samples: a row of the paper, or a policy with every k in its prompt."""

    name: str
    "Name of the method or policy."
    benchmark: str
    "Name of the data set in the paper, or of the problems."
    curves: Mapping[Metric, Sequence[Estimate]]
    "Points over k; without intervals where none were published."

    def curve(self, metric: Metric) -> Sequence[Estimate]:
        """Return the points over k; none where there is no such curve."""
        return self.curves.get(metric, ())


def load(*paths: str | Path) -> list[Run]:
    """Read outputs of `evaluate`; a directory that holds several (one per benchmark, or temperature) gives all of them.

    Raises:
        ValueError: a directory holds no finished evaluation, or two have the same name on the same benchmark.
    """
    runs = [Run(directory, read_summary(directory / "summary.json")) for path in paths for directory in _outputs(path)]
    path_of: dict[tuple[str, str], Path] = {}
    for run in runs:
        earlier = path_of.setdefault((run.name, run.benchmark), run.path)
        if earlier != run.path:
            raise ValueError(
                f"{earlier} and {run.path} are both called {run.name!r} on {run.benchmark}: "
                "evaluate one of them with another --name"
            )
    return runs


def selectors_of(runs: Iterable[Run]) -> list[str]:
    """List the names of the selectors that at least one run was measured with, in the order of the runs."""
    return list(dict.fromkeys(name for run in runs for name in run.realised))


def published(benchmark: str | None = None) -> list[NamedCurves]:
    """Read the paper's numbers (arXiv:2510.23393, Tables 1-14), on one data set or on all."""
    curves_of: dict[tuple[str, str], dict[Metric, list[Estimate]]] = {}
    with PAPER_TABLES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            curves = curves_of.setdefault((row["dataset"], row["method"]), {})
            point = Estimate(k=int(row["k"]), value=float(row["value"]))
            curves.setdefault(PAPER_METRICS[row["metric"]], []).append(point)
    return [
        NamedCurves(name=name, benchmark=dataset, curves=curves)
        for (dataset, name), curves in curves_of.items()
        if benchmark in (None, dataset)
    ]


def write_statements(problems: Sequence[Problem], directory: Path) -> None:
    """Write ids and statements of the problems, for readers of reports; tests, which can be large, are left out."""
    lines = [json.dumps({"id": problem.id, "prompt": problem.prompt}) + "\n" for problem in problems]
    (directory / STATEMENTS).write_text("".join(lines), encoding="utf-8")


def _statement(record: dict[str, Any]) -> tuple[str, str]:
    return take(record, "id", str), take(record, "prompt", str)


def _outputs(path: str | Path) -> list[Path]:
    directory = Path(path)
    if (directory / "summary.json").is_file():
        return [directory]
    found = [*directory.glob("*/summary.json"), *directory.glob("*/*/summary.json")]
    nested = sorted(summary.parent for summary in found)
    if not nested:
        raise ValueError(f"{path} holds no finished evaluation: no summary.json in it or two levels below")
    return nested
