"""What `evaluate` prints at its end."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from maxk_lightning.evaluation.estimates import Estimate
from maxk_lightning.evaluation.summary import Summary


def print_summary(summary: Summary, console: Console) -> None:
    """The curves, the state of the completions, and where the time went."""
    size = f"{summary.num_problems} problems x {summary.num_samples} samples"
    console.print(f"{summary.name} on {summary.benchmark}: {size}", markup=False, soft_wrap=True)
    table = _curve_table(summary.max_at_k, summary.pass_at_k)
    for best, passed in zip(summary.predicted_max_at_k, summary.predicted_pass_at_k, strict=True):
        table.add_row(f"predicted {best.k}", *_cells(best), *_cells(passed), style="italic")
    console.print(table)
    entropy = "unknown" if summary.mean_entropy is None else f"{summary.mean_entropy:.3f} nats"
    console.print(
        f"truncated {summary.truncation_rate:.1%}, without code {summary.no_code_rate:.1%}, "
        f"different programs {summary.distinct_rate:.1%}, entropy per token {entropy}"
    )
    if summary.distinct_at_k:
        last = summary.distinct_at_k[-1]
        console.print(f"different correct behaviours per problem, among {last.k} samples: {last.value:.2f}")
    seconds = summary.seconds
    console.print(
        f"seconds: generating {seconds.generating:.1f}, scoring {seconds.scoring:.1f} "
        f"(waited for {seconds.waiting:.1f}), analysing {seconds.analysing:.1f}"
    )
    for note in summary.notes:
        console.print(f"[yellow]note:[/yellow] {note}")


def print_curves(max_at_k: Sequence[Estimate], pass_at_k: Sequence[Estimate], console: Console) -> None:
    """Both curves, k by k."""
    console.print(_curve_table(max_at_k, pass_at_k))


def _curve_table(max_at_k: Sequence[Estimate], pass_at_k: Sequence[Estimate]) -> Table:
    table = Table()
    for heading in ("k", "max@k", "95% interval", "pass@k", "95% interval"):
        table.add_column(heading, justify="right")
    for best, passed in zip(max_at_k, pass_at_k, strict=True):
        table.add_row(str(best.k), *_cells(best), *_cells(passed))
    return table


def _cells(point: Estimate) -> tuple[str, str]:
    return f"{point.value:.3f}", _interval(point)


def _interval(point: Estimate) -> str:
    return "" if point.low is None or point.high is None else f"{point.low:.3f} - {point.high:.3f}"
