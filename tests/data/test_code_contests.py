"""CodeContests: filters, limits, tests, the split, and defects of the published rows."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maxk_lightning.data import CodeContests, TestSelection
from maxk_lightning.data.code_contests import DIFFICULTIES
from maxk_lightning.types import TestCase
from tests.support.layouts import code_contests_row, write_code_contests


def _load(path: Path, rows: list[dict[str, Any]], **options: Any) -> CodeContests:
    source = CodeContests(write_code_contests(path, rows), **({"split": "all"} | options))
    source.load()
    return source


def _kept(source: CodeContests) -> list[str]:
    assert source.report is not None
    return [facts.id for facts in source.report.kept]


def test_difficulty_3_keeps_the_classes_0_to_3_and_no_contest_letter(tmp_path: Path) -> None:
    rows = [code_contests_row(name=str(rank), difficulty=rank) for rank in (0, 1, 2, 3, 4, 7, 8, 28)]
    source = _load(tmp_path, rows)
    assert _kept(source) == [f"CODECHEF/{rank}" for rank in range(4)]
    assert source.report is not None
    assert {reason: [f.id for f in out] for reason, out in source.report.left_out.items()} == {
        "difficulty above 3": ["CODECHEF/4", "CODECHEF/7", "CODECHEF/8", "CODECHEF/28"]
    }
    assert len(_kept(_load(tmp_path / "all", rows, max_difficulty=None))) == len(rows)


def test_class_labels_are_the_contiguous_ones(tmp_path: Path) -> None:
    rows = [code_contests_row(name=str(source), source=source) for source in range(7)]
    assert [name.split("/")[0] for name in _kept(_load(tmp_path, rows))][-2:] == ["ATCODER", "AIZU"]
    assert (DIFFICULTIES[7], DIFFICULTIES[17], DIFFICULTIES[18], DIFFICULTIES[28]) == ("A", "K", "L", "V")


@pytest.mark.parametrize(
    ("time_limit", "seconds"),
    [
        (None, None),
        ({"seconds": 0, "nanos": 0}, None),
        ({"seconds": 0, "nanos": 500_000_000}, 0.5),
        ({"seconds": 2, "nanos": None}, 2.0),
    ],
)
def test_time_limits(time_limit: Any, seconds: float | None, tmp_path: Path) -> None:
    path = write_code_contests(tmp_path, [code_contests_row(time_limit=time_limit), code_contests_row(name="other")])
    [problem, _] = CodeContests(path, split="all").load()
    assert problem.time_limit_s == seconds
    assert problem.memory_limit_mb == 245  # 256 000 000 bytes, in whole MiB
    [problem, _] = CodeContests(path, split="all", use_limits=False).load()
    assert (problem.time_limit_s, problem.memory_limit_mb) == (None, None)


def test_file_problems_and_repeated_names_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        code_contests_row(),
        code_contests_row(name="files", input_file="input.txt"),
        code_contests_row(name="files too", output_file="output.txt"),
        code_contests_row(),
        code_contests_row(source=5),
    ]
    source = _load(tmp_path, rows)
    assert _kept(source) == ["CODECHEF/prob77. Double It", "ATCODER/prob77. Double It"]
    assert source.report is not None
    assert {reason: len(out) for reason, out in source.report.left_out.items()} == {
        "reads or writes files instead of standard input and output": 2,
        "id was used before": 1,
    }
    assert source.report.num_rows == len(rows)


def test_tests_come_public_private_generated(tmp_path: Path) -> None:
    [problem, *_] = CodeContests(write_code_contests(tmp_path), split="all").load()
    assert [(test.input, test.output) for test in problem.tests] == [
        ("3\n", "6\n"),
        ("0\n", "0\n"),
        ("4\n", "8\n"),
        ("5\n", "10\n"),
    ]
    assert len(problem.tests) == 4
    assert list(problem.tests[1:3]) == list(problem.tests)[1:3]
    assert problem.tests[-1] == TestCase(input="5\n", output="10\n")


def test_a_seeded_draw_of_tests_is_the_same_every_time_and_differs_by_problem(tmp_path: Path) -> None:
    generated = {"input": [f"{i}\n" for i in range(30)], "output": [f"{2 * i}\n" for i in range(30)]}
    path = write_code_contests(tmp_path, [code_contests_row(name=str(i), generated_tests=generated) for i in range(5)])
    draws = [
        [[test.input for test in problem.tests] for problem in CodeContests(path, split="all", tests=selection).load()]
        for selection in [TestSelection(max_tests=6, seed=1)] * 2 + [TestSelection(max_tests=6, seed=2)]
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(inputs) for inputs in draws[0]}) == 5
    assert all(len(set(inputs)) >= 5 for inputs in draws[0])  # input "3" stands twice among the tests


@pytest.mark.parametrize("num_public", [None, 0, 2, 9])
def test_the_first_tests_are_public_if_asked(tmp_path: Path, num_public: int | None) -> None:
    """CodeContests has public tests itself: the first one here. The tests and their order stay what they are."""
    selection = TestSelection(num_public=num_public)
    [problem, *_] = CodeContests(write_code_contests(tmp_path), split="all", tests=selection).load()
    expected = 1 if num_public is None else min(num_public, 4)
    assert [test.is_public for test in problem.tests] == [True] * expected + [False] * (4 - expected)
    assert [test.input for test in problem.tests] == ["3\n", "0\n", "4\n", "5\n"]


def test_a_negative_number_of_public_tests_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tests.num_public is -1, must not be negative"):
        TestSelection(num_public=-1)


def test_lists_of_dicts_are_read_like_dicts_of_lists(tmp_path: Path) -> None:
    kinds = ("public_tests", "private_tests", "generated_tests")
    row = code_contests_row()
    turned = row | {
        kind: [
            {"input": given, "output": expected}
            for given, expected in zip(row[kind]["input"], row[kind]["output"], strict=True)
        ]
        for kind in kinds
    }
    (tmp_path / "turned" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([turned]), tmp_path / "turned" / "data" / "train-00000-of-00001.parquet")
    [ours] = CodeContests(str(tmp_path / "turned"), split="all").load()
    [theirs] = CodeContests(write_code_contests(tmp_path / "plain", [row]), split="all").load()
    assert list(ours.tests) == list(theirs.tests)
    assert (ours.id, ours.prompt) == (theirs.id, theirs.prompt)  # labels as bare numbers, without their names


def test_problems_without_tests_or_with_one_answer_are_left_out(tmp_path: Path) -> None:
    nothing = {"input": [], "output": []}
    same = {"input": ["1\n", "2\n"], "output": ["6\n", "6\n"]}
    rows = [
        code_contests_row(name="none", public_tests=nothing, private_tests=nothing, generated_tests=nothing),
        code_contests_row(name="same", private_tests=nothing, generated_tests=same),
        code_contests_row(name="fine"),
    ]
    assert _kept(_load(tmp_path, rows)) == ["CODECHEF/same", "CODECHEF/fine"]
    strict = _load(tmp_path, rows, tests=TestSelection(min_distinct_outputs=2))
    assert _kept(strict) == ["CODECHEF/fine"]
    assert strict.report is not None
    assert list(strict.report.left_out) == ["no tests", "fewer than 2 different expected outputs"]


def test_a_malformed_row_is_named_by_file_row_field_and_reason(tmp_path: Path) -> None:
    broken = {"input": ["1\n", "2\n"], "output": ["2\n"]}
    rows = [code_contests_row(), code_contests_row(name="broken", private_tests=broken)]
    path = write_code_contests(tmp_path, rows)
    with pytest.raises(ValueError, match=r"\(train\): row 1: `private_tests` has 2 inputs and 1 outputs"):
        CodeContests(path).load()
    lenient = CodeContests(path, split="all", skip_invalid=True)
    assert len(lenient.load()) == 1
    assert lenient.report is not None
    assert list(lenient.report.left_out) == ["malformed: `private_tests` has 2 inputs and 1 outputs"]


def test_the_split_is_exact_disjoint_seeded_and_stable_under_filters(tmp_path: Path) -> None:
    rows = [code_contests_row(name=str(i), difficulty=i % 4) for i in range(200)]
    path = write_code_contests(tmp_path, rows)
    parts = {part: [p.id for p in CodeContests(path, split=part).load()] for part in ("train", "test", "all")}  # type: ignore[arg-type]
    assert (len(parts["train"]), len(parts["test"])) == (180, 20)
    assert sorted(parts["train"] + parts["test"]) == sorted(parts["all"])
    assert parts["test"] == [name for name in parts["all"] if name in parts["test"]]  # order of the files
    other = [p.id for p in CodeContests(path, split="test", split_seed=1).load()]
    assert set(other) != set(parts["test"])
    easier = {p.id for p in CodeContests(path, split="test", max_difficulty=2).load()}
    same = {name for name in parts["test"] if rows[int(name.split("/")[1])]["difficulty"] <= 2}
    assert easier <= same or same <= easier  # only the size of the share changed, not the ranking
    assert len(easier & same) >= 10


def test_missing_files_columns_and_splits_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or directory"):
        CodeContests(str(tmp_path / "nowhere")).load()
    path = write_code_contests(tmp_path)
    with pytest.raises(ValueError, match=r'Unknown split "valid"'):
        CodeContests(path, hub_split="valid").load()
    (tmp_path / "other" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "other" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"cannot be read: No match for FieldRef.Name\(source\)"):
        CodeContests(str(tmp_path / "other")).load()


def test_memory_does_not_grow_with_the_tests(tmp_path: Path) -> None:
    row_bytes = 2 << 20
    huge = {"input": ["x" * row_bytes], "output": ["y\n"]}
    path = write_code_contests(tmp_path, [code_contests_row(name=str(i), generated_tests=huge) for i in range(30)])
    CodeContests(path, split="all").load()  # imports, and the conversion to arrow
    tracemalloc.start()
    problems = CodeContests(path, split="all").load()
    for problem in problems:
        assert len(problem.tests[2].input) == row_bytes
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(problems) == 30
    assert held < row_bytes
    assert peak < 8 * row_bytes  # a row and its copies, of 30


def test_the_report_is_a_table_by_reason_and_by_source_and_difficulty(tmp_path: Path) -> None:
    rows = [
        code_contests_row(name="a"),
        code_contests_row(name="b", difficulty=8, source=2),
        code_contests_row(name="c", difficulty=8, source=2),
        code_contests_row(name="d", difficulty=1),
    ]
    source = _load(tmp_path, rows)
    assert source.report is not None
    table = [line.split() for line in source.report.text().splitlines()[1:]]
    assert table == [
        ["left", "out", "2", "difficulty", "above", "3", "(CODEFORCES/b,", "CODEFORCES/c)"],
        ["source", "difficulty", "read", "kept"],
        ["CODECHEF", "EASY", "1", "1"],
        ["CODECHEF", "MEDIUM", "1", "1"],
        ["CODEFORCES", "B", "2", "0"],
    ]
    assert json.dumps(source.report.text())  # plain text
