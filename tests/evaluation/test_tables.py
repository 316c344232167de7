"""Tables: the paper's own numbers come out as the paper prints them."""

import csv
import io
from pathlib import Path

import pytest

from maxk_lightning.evaluation import load, published, table
from maxk_lightning.evaluation.comparison import published_tables
from maxk_lightning.evaluation.estimates import Estimate
from maxk_lightning.evaluation.runs import PAPER_TABLES, NamedCurves
from maxk_lightning.evaluation.tables import Table
from tests.support.builders import make_run, make_samples

# ruff: noqa: E501  (a table has long rows)
# CodeContests, max@k, written out by hand: bold is best, underlined is second, at three decimals.
CODE_CONTESTS = """\
| CodeContests, max@k | k = 1 | k = 2 | k = 4 | k = 8 | k = 16 | k = 32 | k = 64 | k = 128 | k = 256 |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| Base model | 0.317 | 0.411 | 0.485 | 0.544 | 0.595 | 0.637 | <u>0.675</u> | <u>0.710</u> | <u>0.739</u> |
| BoN-max second | **0.394** | <u>0.458</u> | 0.509 | 0.554 | 0.594 | 0.627 | 0.654 | 0.678 | 0.699 |
| BoN-max mean | 0.375 | 0.453 | <u>0.512</u> | 0.562 | 0.605 | <u>0.641</u> | 0.672 | 0.702 | 0.732 |
| BoN LOO-1 | 0.385 | 0.435 | 0.480 | 0.521 | 0.559 | 0.593 | 0.622 | 0.647 | 0.669 |
| BoN mean | <u>0.389</u> | **0.465** | **0.522** | **0.569** | <u>0.608</u> | 0.640 | 0.668 | 0.693 | 0.716 |
| Off-policy BoN | 0.370 | 0.450 | <u>0.512</u> | <u>0.565</u> | **0.613** | **0.654** | **0.689** | **0.718** | **0.742** |
"""


def run(name: str, *values: float) -> NamedCurves:
    points = [Estimate(k=2**i, value=value) for i, value in enumerate(values)]
    return NamedCurves(name=name, benchmark="b", curves={"max_at_k": points})


def marks(found: Table) -> list[list[str | None]]:
    return [[row.marks.get(k) for k in found.ks] for row in found.rows]


def test_the_papers_table_comes_out_as_printed() -> None:
    main, *rest = published_tables("CodeContests")
    assert str(main) == CODE_CONTESTS
    # The matched-iteration rows stand in tables of their own: the paper prints k = 1 and 128 only.
    assert [(found.metric, found.ks, len(found.rows)) for found in rest] == [
        ("max_at_k", (1, 128), 4),
        ("pass_at_k", (1, 2, 4, 8, 16, 32, 64, 128, 256), 6),
        ("pass_at_k", (1, 128), 2),
    ]


def test_every_published_number_is_in_some_table_once() -> None:
    with PAPER_TABLES.open(newline="") as file:
        expected = sorted((r["dataset"], r["metric"], r["method"], r["k"], r["value"]) for r in csv.DictReader(file))
    datasets = dict.fromkeys(run.benchmark for run in published())
    rows = [
        row
        for dataset in datasets
        for found in published_tables(dataset)
        for row in csv.DictReader(io.StringIO(found.csv()))
    ]
    found_rows = sorted((r["dataset"], r["metric"], r["method"], r["k"], f"{float(r['value']):.3f}") for r in rows)
    assert found_rows == [(*row[:4], f"{float(row[4]):.3f}") for row in expected]


def test_every_column_of_every_published_table_marks_its_largest_values() -> None:
    for dataset in dict.fromkeys(run.benchmark for run in published()):
        for found in published_tables(dataset):
            for k in found.ks:
                values = {row.name: row.points[k].value for row in found.rows}
                best = max(values.values())
                rest = [value for value in values.values() if value < best]
                assert {row.name for row in found.rows if row.marks.get(k) == "best"} == {
                    name for name, value in values.items() if value == best
                }
                second = {row.name for row in found.rows if row.marks.get(k) == "second"}
                assert second == {name for name, value in values.items() if rest and value == max(rest)}


def test_benchmarks_are_found_by_name_and_others_have_no_published_numbers() -> None:
    assert published_tables("code-contests_test")[0].benchmark == "CodeContests"
    assert published_tables("builtin-test") == []


def test_equal_in_print_is_equal_in_rank_and_one_run_alone_is_not_marked() -> None:
    found = table([run("a", 0.50001, 0.1), run("b", 0.49999, 0.2), run("c", 0.4)])
    assert marks(found) == [["best", "second"], ["best", "best"], ["second", None]]
    assert marks(table([run("a", 0.5)])) == [[None]]
    assert "| c | <u>0.400</u> | - |" in str(found)


def test_three_lines_from_outputs_to_a_table(tmp_path: Path) -> None:
    make_run(tmp_path / "base", make_samples({"x": [0.0, 0.5], "y": [0.0, 0.0]}))
    make_run(tmp_path / "trained", make_samples({"x": [1.0, 0.5], "y": [0.0, 0.5]}))
    runs = load(tmp_path)
    assert [run.name for run in runs] == ["base", "trained"]
    assert "| trained | **0.500** | **0.750** |" in str(table(runs))


def test_two_benchmarks_need_a_name(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / b, make_samples({"x": [0.5]}), benchmark=b) for b in ("one", "two")]
    with pytest.raises(ValueError, match="runs of 2 benchmarks"):
        table(runs)
    assert table(runs, benchmark="two").rows[0].name == "two"


def test_a_directory_without_a_finished_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished evaluation"):
        load(tmp_path)


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in ("first", "second"):
        make_run(tmp_path / parent / "base", make_samples({"x": [0.5]}))
    with pytest.raises(ValueError, match="both called 'base' on bench"):
        load(tmp_path / "first", tmp_path / "second")
