"""Published files as they lie on disk: rows, errors, splits by task id, public tests, and reading once."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maxk_lightning.data import MBPP, CodeContests, Codeforces, Cure, EvalPlus, JsonLines, LiveBench, LiveCodeBench
from maxk_lightning.data.files import FileRows
from maxk_lightning.records import problem_from_record, problem_to_record
from tests.support import layouts

ROWS = [{"a": 1}, {"a": "ü, [x]"}, {"a": [{"b": "]"}]}]
FORMS: dict[str, Callable[[], bytes]] = {
    "r.jsonl": lambda: "\n".join(map(json.dumps, ROWS)).encode(),
    "r.json": lambda: json.dumps(ROWS, ensure_ascii=False, indent=2).encode(),
    "one_by_one.json": lambda: "\n".join(map(json.dumps, ROWS)).encode(),
    "r.jsonl.gz": lambda: gzip.compress("\n\n".join(map(json.dumps, ROWS)).encode()),
    "r.json.gz": lambda: gzip.compress(json.dumps(ROWS).encode()),
    "bom.json": lambda: b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_every_form(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name]())
    assert list(FileRows(str(path))) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "no row in this file"),
        ("a.json", b"[]", "no row in this file"),
        ("a.json", b'[{"a": 1}', r"not JSON \(the array does not end"),
        ("a.json", b'[{"a": 1}, {]', "row 1: not JSON"),
        ("a.json", b'["\xff"]', "not UTF-8 text"),
        ("a.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-5], "cannot be read"),
        ("a.jsonl", b'{"task_id": 11}\n{"task_id"', r"row 0: `prompt` is missing"),
        ("a.jsonl", b"[1]", "row 0: a row must be a JSON object, not list"),
        ("a.jsonl", b'{"a": "\xff"}', "row 0: not UTF-8 text"),
        ("a.parquet", b"no parquet", "cannot be read: .*may also name one .json"),
    ],
)
def test_a_broken_file_is_named_with_its_row(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {reason}") as raised:
        MBPP(str(tmp_path / name)).load()
    assert "network" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.jsonl: .*[nN]o such file"):
        MBPP(str(tmp_path / "a.jsonl")).load()


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


MBPP_CHANGES = [
    ({"code": None}, "`code` must be str, not NoneType"),
    ({"test_list": "assert 1"}, "`test_list` must be list, not str"),
    ({"test_list": [3]}, r"`test_list\[0\]` must be a text, not int"),
    ({"test_list": ["assert ("]}, r"`assert \(` is not Python"),
    ({"task_id": "x"}, "`task_id` must be int, not str"),
    ({"prompt": ["x"]}, "`prompt` must be str, not list"),
]


@pytest.mark.parametrize(("change", "reason"), MBPP_CHANGES)
def test_a_malformed_field_is_named_with_file_and_row(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "rows.jsonl", [layouts.mbpp_row(), layouts.mbpp_row(task_id=12) | change])
    with pytest.raises(ValueError, match=f"rows.jsonl: row 1: {reason}"):
        MBPP(path).load()
    lenient = MBPP(path, skip_invalid=True)
    assert [problem.id for problem in lenient.load()] == ["MBPP/11"]


def test_splits_of_the_published_mbpp_files_are_task_ids(tmp_path: Path) -> None:
    edges = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
    rows = [layouts.mbpp_row(task_id=number) for pair in edges.values() for number in pair]
    path = _jsonl(tmp_path / "mbpp.jsonl", rows)
    for split, numbers in edges.items():
        source = MBPP(path, hub_split=split)  # type: ignore[arg-type]
        assert [problem.id for problem in source.load()] == [f"MBPP/{number}" for number in numbers]
        assert source.report is not None
        assert source.report.num_rows == 8
    assert len(MBPP(path, hub_split="all").load()) == 8
    with pytest.raises(ValueError, match="hub_split is 'all'"):
        MBPP(hub_split="all")


def test_every_source_takes_a_file_and_marks_public_tests(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("cc", "lcb", "cf", "he", "cure", "lb")}
    sources = {
        "cc": CodeContests(_jsonl(files["cc"], [layouts.code_contests_row()]), split="all"),
        "lcb": LiveCodeBench(_jsonl(files["lcb"], [layouts.lcb_row()])),
        "lb": LiveBench(_jsonl(files["lb"], [layouts.livebench_row()])),
        "cf": Codeforces(_jsonl(files["cf"], [layouts.codeforces_row()]), overlap=str(files["cc"])),
        "he": EvalPlus(_jsonl(files["he"], [layouts.humaneval_row()])),
        "cure": Cure(_jsonl(files["cure"], [layouts.cure_row(test_input=[], test_output=[])])),
    }
    public = {
        name: [test.is_public for problem in source.load() for test in problem.tests]
        for name, source in sources.items()
    }
    assert public == {
        "cc": [True, False, False, False],
        "lcb": [True, False, False],
        "lb": [True, False],
        "cf": [True, False],
        "he": [False, False, False],
        "cure": [True],
    }


def test_carriage_returns_of_codeforces_tests_are_gone(tmp_path: Path) -> None:
    row = layouts.codeforces_row(official_tests=[{"input": "1\r\n", "output": "2\r\n"}])
    [problem] = Codeforces(_jsonl(tmp_path / "cf.jsonl", [row]), overlap=None).load()
    assert [(test.input, test.output) for test in problem.tests] == [("1\n", "2\n")]


def test_rows_with_all_tests_together_need_no_source(tmp_path: Path) -> None:
    row = {"name": "1_A. X", "description": "d", "difficulty": 7, "tests": {"input": ["1"], "output": ["2"]}}
    [problem] = CodeContests(_jsonl(tmp_path / "cc.jsonl", [row]), split="all", max_difficulty=None).load()
    assert (problem.id, len(problem.tests)) == ("UNKNOWN_SOURCE/1_A. X", 1)
    missing = {key: value for key, value in layouts.code_contests_row().items() if key != "source"}
    with pytest.raises(ValueError, match="row 0: `source` is None"):
        CodeContests(_jsonl(tmp_path / "no.jsonl", [missing]), split="all").load()


def test_a_parquet_file_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([layouts.mbpp_row()]), tmp_path / "rows.parquet")
    [problem] = MBPP(str(tmp_path / "rows.parquet")).load()
    assert problem.id == "MBPP/11"


def test_a_source_is_read_once_while_its_file_stays_as_it_is(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "rows.jsonl", [layouts.mbpp_row()])
    one, two = MBPP(path), MBPP(path)
    [problem] = one.load()
    assert two.load()[0] is problem
    assert one.report is not two.report
    assert MBPP(path, mode="repr").load()[0] is not problem
    _jsonl(tmp_path / "rows.jsonl", [layouts.mbpp_row(), layouts.mbpp_row(task_id=12)])
    assert len(MBPP(path).load()) == 2


def test_public_tests_and_values_survive_a_round_trip(tmp_path: Path) -> None:
    record = {
        "id": "a",
        "prompt": "p",
        "tests": [{"input": "1", "output": "2", "public": True}, {"input": "1", "output": "2"}],
        "function": "f",
        "values": "python",
        "atol": 0.5,
    }
    problem = problem_from_record(record)
    assert [test.is_public for test in problem.tests] == [True, False]
    assert problem_to_record(problem) == record
    headed = {"id": "a", "prompt": "p", "tests": [{"input": "", "output": ""}], "header": "livecodebench"}
    assert problem_to_record(problem_from_record(headed)) == headed
    for change, reason in (
        ({"values": "yaml"}, "`values` is 'yaml'"),
        ({"atol": -1}, "`atol` must be a number of at least 0"),
        ({"values": "json"}, "`atol` has no effect"),
        ({"header": "livecodebench"}, "`header` has no effect"),
        ({"tests": [{"input": "", "output": "", "public": 1}]}, "`public` must be bool"),
    ):
        with pytest.raises(ValueError, match=reason):
            problem_from_record(record | change)
    path = _jsonl(tmp_path / "own.jsonl", [headed])
    assert JsonLines(path, compare="exact").load()[0].compare == "exact"
