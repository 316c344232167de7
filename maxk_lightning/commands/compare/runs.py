"""Write and print a comparison."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from maxk_lightning.evaluation import curves, load
from maxk_lightning.evaluation.comparison import Comparison, compare_benchmarks
from maxk_lightning.evaluation.markdown import tables_csv, tests_csv, to_markdown
from maxk_lightning.evaluation.plots import plots_of
from maxk_lightning.evaluation.report import html_report
from maxk_lightning.evaluation.runs import selectors_of
from maxk_lightning.evaluation.tables import Table, cell_text

STYLES = {"best": "bold", "second": "underline"}


def compare_runs(paths: Sequence[str], out: str, baseline: str | None) -> None:
    """Compare evaluations, write everything under `out` and print tables and conclusions.

    Raises:
        ValueError: see `compare`.
    """
    comparisons = compare_benchmarks(load(*paths), baseline)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    has_one = len(comparisons) == 1
    plots = {c.benchmark: list(plots_of(c, "" if has_one else f" {c.benchmark}")) for c in comparisons}
    for benchmark_plots in plots.values():
        for plot in benchmark_plots:
            plot.save(directory)
    runs = [run for comparison in comparisons for run in comparison.runs]
    curves(runs, selectors=selectors_of(runs)).savefig(directory / "curves.png")
    (directory / "report.md").write_text(to_markdown(comparisons), encoding="utf-8")
    (directory / "tables.csv").write_text(tables_csv(comparisons), encoding="utf-8")
    (directory / "tests.csv").write_text(tests_csv(comparisons), encoding="utf-8")
    (directory / "report.html").write_text(html_report(comparisons, plots), encoding="utf-8")
    console = Console()
    for comparison in comparisons:
        _print(comparison, console)
    files = "report.md, tables.csv, tests.csv, curves.png and more figures"
    console.print(f"wrote {directory / 'report.html'}, {files}", soft_wrap=True)


def _print(comparison: Comparison, console: Console) -> None:
    for table in comparison.tables:
        console.print(_rich(table))
    for sentence in comparison.conclusions():
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def _rich(table: Table) -> RichTable:
    printed = RichTable(title=Text(table.title))
    printed.add_column("k")
    for k in table.ks:
        printed.add_column(str(k), justify="right")
    for row in table.rows:
        printed.add_row(
            Text(row.name), *(Text(cell_text(row, k), STYLES.get(row.marks.get(k, ""), "")) for k in table.ks)
        )
    return printed
