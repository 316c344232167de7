"""LiveCodeBench: two encodings of tests, dates, versions, and files that must not be trusted."""

import base64
import json
import os
import pickle
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from maxk_lightning.data import Instruction, LiveCodeBench
from maxk_lightning.data.livecodebench import day_of, files_of
from maxk_lightning.data.packed_tests import unpack_tests
from maxk_lightning.data.rows import load_rows
from tests.support.layouts import lcb_call_row, lcb_row, pack, stdin_tests, write_livecodebench


def _load(path: Path, *rows: dict[str, Any], **options: Any) -> LiveCodeBench:
    source = LiveCodeBench(write_livecodebench(path, {"test.jsonl": rows}), version="v1", **options)
    source.load()
    return source


def _packed(content: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(content))).decode()


def test_both_encodings_give_the_same_tests(tmp_path: Path) -> None:
    tests = stdin_tests(("4\n", "8\n"), ("ü\n", "\n"))
    rows = [
        lcb_row(question_id=str(i), private_test_cases=text) for i, text in enumerate([json.dumps(tests), pack(tests)])
    ]
    plain, packed = LiveCodeBench(write_livecodebench(tmp_path, {"test.jsonl": rows}), version="v1").load()
    assert list(plain.tests) == list(packed.tests)
    assert [test.input for test in packed.tests] == ["3\n", "4\n", "ü\n"]  # public first
    assert packed.compare == "lines_decimal"


class Attack:
    """Unpickles into a call."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_names_code_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    text = base64.b64encode(zlib.compress(pickle.dumps(Attack(victim), protocol))).decode()
    with pytest.raises(ValueError, match=r"`f` holds a pickle that was refused: names (posix|os)\.mkdir"):
        unpack_tests(text, "f")
    assert not victim.exists()
    pickle.loads(zlib.decompress(base64.b64decode(text)))
    assert victim.exists()  # it would have worked


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!!!", "is neither JSON nor base64 of zlib"),
        (base64.b64encode(b"no zlib").decode(), "is neither JSON nor base64 of zlib"),
        (base64.b64encode(zlib.compress(b"no pickle")).decode(), "holds a pickle that was refused"),
        (base64.b64encode(zlib.compress(b"")).decode(), "holds a pickle that was refused"),
        (_packed([1, 2]), "holds a pickle of list, must be of a string"),
        (_packed("{oops"), "unpacks to text that is not JSON"),
        (_packed('{"a": 1}'), "must hold a JSON list of objects"),
        ("[1]", "must hold a JSON list of objects"),
    ],
)
def test_other_garbage_is_refused_with_the_field(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"row 0: `private_test_cases` {reason}"):
        _load(tmp_path, lcb_row(private_test_cases=text))


def test_dates_arrive_in_three_forms(tmp_path: Path) -> None:
    forms = [datetime(2025, 3, 1), "2025-03-01T00:00:00", "2025-03-01 00:00:00"]
    assert {day_of(form, "contest_date") for form in forms} == {"2025-03-01"}
    with pytest.raises(ValueError, match="`contest_date` is 'soon', not a date"):
        day_of("soon", "contest_date")
    path = write_livecodebench(tmp_path)
    rows = load_rows("json", split="test", data_files={"test": [f"{path}/test.jsonl"]})
    assert isinstance(rows[0]["contest_date"], datetime)  # what the library makes of the text
    assert LiveCodeBench(path, version="v1").load()[0].metadata["date"] == "2024-03-01"


def test_a_window_of_contest_dates(tmp_path: Path) -> None:
    path = write_livecodebench(tmp_path)
    names = [problem.id for problem in LiveCodeBench(path, version="release_v2", start_date="2024-08-01").load()]
    assert names == ["99001"]
    names = [problem.id for problem in LiveCodeBench(path, version="release_v2", end_date="2024-03-01").load()]
    assert names == ["abc900_a"]


def test_call_tests_need_a_function_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"testtype 'functional', but the metadata has no `func_name`"):
        _load(tmp_path / "a", lcb_call_row(metadata="{}"))
    with pytest.raises(ValueError, match=r"testtype 'stdin', but the metadata names the function f"):
        _load(tmp_path / "b", lcb_row(metadata='{"func_name": "f"}'))


def test_the_prompt_of_a_call_shows_the_starter_code(tmp_path: Path) -> None:
    path = write_livecodebench(tmp_path)
    stdin, call = LiveCodeBench(path, version="release_v2").load()
    assert call.function == "addTwo"
    assert "def addTwo(self, a: int, b: int) -> int:" in call.prompt
    assert "standard input" in stdin.prompt
    assert "standard input" not in call.prompt
    own = Instruction(stdin="{statement} {x}", function="{function}|{starter}|{statement}")
    stdin, call = LiveCodeBench(path, version="release_v2", instruction=own).load()
    assert stdin.prompt == "Print twice the number. {x}"
    assert call.prompt.startswith("addTwo|class Solution")


def test_versions() -> None:
    assert (
        files_of("release_v6") == files_of("release_latest") == ["test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7))]
    )
    assert files_of("v6") == ["test6.jsonl"]
    assert files_of("v5_v6") == ["test5.jsonl", "test6.jsonl"]
    for bad in ("release_v7", "v0", "v3_v2", "latest", ""):
        with pytest.raises(ValueError, match="version is"):
            files_of(bad)


def test_a_version_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test3.jsonl: no such file or directory"):
        LiveCodeBench(write_livecodebench(tmp_path), version="release_v3").load()


def test_a_script_repository_gives_advice(tmp_path: Path) -> None:
    path = write_livecodebench(tmp_path / "code_generation_lite")
    with pytest.raises(
        ValueError,
        match=r"holds a loading script .*found code_generation_lite.py.*such as maxk_lightning.data.LiveCodeBench",
    ):
        load_rows(path, split="test")


def test_errata_and_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = lcb_row(question_id="2954", question_title="Most Frequent IDs")
    files = {"test.jsonl": [lcb_row(question_id="abc311_c"), bad, lcb_row()], "test2.jsonl": [lcb_row()]}
    source = LiveCodeBench(write_livecodebench(tmp_path, files), version="release_v2", exclude_errata=True)
    assert [problem.id for problem in source.load()] == ["abc900_a"]
    assert source.report is not None
    assert {reason: len(rows) for reason, rows in source.report.left_out.items()} == {
        "listed in LiveCodeBench's errata": 2,
        "id was used in an earlier file": 1,
    }
    assert len(LiveCodeBench(source.path, version="release_v2").load()) == 3


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write_livecodebench(tmp_path)
    (tmp_path / "test.jsonl").write_text(json.dumps(lcb_row()) + "\n{oops\n")
    with pytest.raises(ValueError, match=r"test.jsonl: row 1: not JSON"):
        LiveCodeBench(path, version="v1").load()
