"""A comparison as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from maxk_lightning.evaluation.comparison import ALPHA, Comparison
from maxk_lightning.evaluation.estimates import Metric
from maxk_lightning.evaluation.figures import label_of
from maxk_lightning.evaluation.origin import ORIGIN_HEADINGS
from maxk_lightning.evaluation.paired import PairedTest

TEST_HEADINGS = (
    "k",
    "run",
    "against",
    "difference",
    "95% interval",
    "gained / lost",
    "effect",
    "Wilcoxon p",
    "bootstrap p",
)


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Write tables, tests and notes of all benchmarks."""
    return "\n".join(part for comparison in comparisons for part in _benchmark_parts(comparison))


def tables_csv(comparisons: Sequence[Comparison]) -> str:
    """List all values of all tables, one per line, with their intervals; the paper's rows are marked `published`."""
    lines: list[str] = []
    for comparison in comparisons:
        for source, tables in (("here", comparison.tables), ("published", comparison.published)):
            for table in tables:
                header, *rows = table.csv().splitlines()
                lines += [f"source,{header}"] if not lines else []
                lines += [f"{source},{row}" for row in rows]
    return "\n".join(lines) + "\n"


def tests_csv(comparisons: Sequence[Comparison]) -> str:
    """List all paired tests, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(PairedTest)]
    writer.writerow(["dataset", "metric", "question", *names])
    for comparison in comparisons:
        for question, metric, tests in questions(comparison):
            for test in tests:
                values = [getattr(test, name) for name in names]
                writer.writerow([comparison.benchmark, label_of(metric), question, *values])
    return text.getvalue()


def questions(comparison: Comparison) -> Iterator[tuple[str, Metric, Sequence[PairedTest]]]:
    """Yield (what was asked, metric, its tests), in the order of the report."""
    for (metric, name), tests in comparison.tests.items():
        yield f"{name} against {comparison.baseline.name}", metric, tests
    for metric, tests in comparison.best_against_second.items():
        yield "best against second best", metric, tests


def cells_of(test: PairedTest) -> tuple[str, ...]:
    """Write a test under `TEST_HEADINGS`; p-values are the corrected ones."""
    return (
        str(test.k),
        test.other,
        test.baseline,
        f"{test.difference:+.3f}",
        f"{test.low:+.3f} to {test.high:+.3f}",
        f"{test.num_gained} / {test.num_lost}",
        f"{test.effect_size:+.2f}",
        p_text(test.wilcoxon_holm),
        p_text(test.bootstrap_holm),
    )


def p_text(p_value: float) -> str:
    """Print a p-value; a star marks significance.

    >>> p_text(0.03), p_text(0.2), p_text(1e-7)
    ('0.030*', '0.200', '<0.001*')
    """
    number = "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return number + "*" * (p_value < ALPHA)


def _benchmark_parts(comparison: Comparison) -> list[str]:
    parts = [f"# {comparison.benchmark}\n"]
    parts += [f"- {sentence}" for sentence in [*comparison.conclusions(), *comparison.notes]]
    if comparison.origins:
        parts += ["", "## Runs\n", _markdown_table(ORIGIN_HEADINGS, "---|", comparison.origins)]
    parts += ["", f"{comparison.legend}\n", *map(str, comparison.tables)]
    if comparison.published:
        parts += ["## Published (arXiv:2510.23393)\n", *map(str, comparison.published)]
    parts += [
        "## Paired tests\n",
        f"p corrected for the number of ks (Holm), * below {ALPHA}; effect: matched-pairs rank-biserial correlation.\n",
    ]
    for question, metric, tests in questions(comparison):
        parts.append(_test_table(f"{question}, {label_of(metric)}", tests))
    return parts


def _test_table(title: str, tests: Sequence[PairedTest]) -> str:
    return f"### {title}\n\n{_markdown_table(TEST_HEADINGS, '---:|', map(cells_of, tests))}"


def _markdown_table(headings: Sequence[str], rule: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [
        f"| {' | '.join(headings)} |",
        "|" + rule * len(headings),
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
