"""Tables in the paper's form: methods down, k across, best bold, second underlined."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maxk_lightning.evaluation.estimates import Estimate, Metric
from maxk_lightning.evaluation.figures import HasCurves, label_of

Mark = Literal["best", "second"]
DIGITS = 3
"Decimals that the paper prints; values that are equal in print are equal in rank."


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The row of a method."""

    name: str
    "Name of the method."
    points: dict[int, Estimate]
    "Values by k; a k without a value leaves its cell empty."
    marks: dict[int, Mark]
    "Cells to set off."


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The table of one benchmark and metric; `str(table)` is Markdown."""

    benchmark: str
    "Name of the benchmark."
    metric: Metric
    "Name of the metric."
    ks: tuple[int, ...]
    "Values of k, one per column."
    rows: tuple[Row, ...]
    "Rows, in the order given."

    @property
    def title(self) -> str:
        """Benchmark and metric."""
        return f"{self.benchmark}, {label_of(self.metric)}"

    def __str__(self) -> str:
        return self.markdown()

    def markdown(self) -> str:
        """Write a Markdown table; the underline needs HTML, which Markdown allows."""
        lines = [
            f"| {self.title} | " + " | ".join(f"k = {k}" for k in self.ks) + " |",
            "|---" + "|---:" * len(self.ks) + "|",
        ]
        forms = {"best": "**{}**", "second": "<u>{}</u>", None: "{}"}
        for row in self.rows:
            cells = [forms[row.marks.get(k)].format(cell_text(row, k)) for k in self.ks]
            lines.append(f"| {row.name.replace('|', '/')} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """List one line per value, unrounded, with interval and mark."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["dataset", "metric", "method", "k", "value", "low", "high", "num_problems", "mark"])
        for row in self.rows:
            for k, point in row.points.items():
                interval = [point.low, point.high, point.num_problems, row.marks.get(k)]
                cells = ["" if cell is None else cell for cell in interval]
                writer.writerow([self.benchmark, label_of(self.metric), row.name, k, point.value, *cells])
        return text.getvalue()


def tables(runs: Sequence[HasCurves], metrics: Sequence[Metric]) -> list[Table]:
    """Make one table per benchmark and metric, in the order of the runs."""
    benchmarks = dict.fromkeys(run.benchmark for run in runs)
    return [table(runs, metric, benchmark) for benchmark in benchmarks for metric in metrics]


def table(
    runs: Sequence[HasCurves], metric: Metric = "max_at_k", benchmark: str | None = None, *, is_marked: bool = True
) -> Table:
    """Make the table of one benchmark (None: the only one there is); runs without the metric are left out.

    `is_marked` sets the best and the second of every column off: not for runs on different problems.

    Raises:
        ValueError: there is no run, or several benchmarks and none is named.
    """
    benchmarks = list(dict.fromkeys(run.benchmark for run in runs))
    if benchmark is None:
        if len(benchmarks) != 1:
            raise ValueError(f"runs of {len(benchmarks)} benchmarks {benchmarks}: name one of them")
        benchmark = benchmarks[0]
    chosen = [run for run in runs if run.benchmark == benchmark and run.curve(metric)]
    points = [{point.k: point for point in run.curve(metric)} for run in chosen]
    ks = tuple(sorted({k for row in points for k in row}))
    marks = _marks(points, ks) if is_marked else [{} for _ in points]
    rows = [
        Row(name=run.name, points=row, marks=row_marks)
        for run, row, row_marks in zip(chosen, points, marks, strict=True)
    ]
    return Table(benchmark=benchmark, metric=metric, ks=ks, rows=tuple(rows))


def cell_text(row: Row, k: int) -> str:
    """Print a value; a hyphen where there is none."""
    return f"{row.points[k].value:.{DIGITS}f}" if k in row.points else "-"


def _marks(rows: Sequence[dict[int, Estimate]], ks: Sequence[int]) -> list[dict[int, Mark]]:
    """Best and second of every column, by printed value: equals share a mark. One row alone is not marked."""
    marks: list[dict[int, Mark]] = [{} for _ in rows]
    for k in ks:
        printed = [round(row[k].value, DIGITS) if k in row else None for row in rows]
        ranking = sorted({value for value in printed if value is not None}, reverse=True)
        if sum(value is not None for value in printed) < 2:
            continue
        for row_marks, value in zip(marks, printed, strict=True):
            if value == ranking[0]:
                row_marks[k] = "best"
            elif len(ranking) > 1 and value == ranking[1]:
                row_marks[k] = "second"
    return marks
