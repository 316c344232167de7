"""Every malformed record is refused with file, line and reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from maxk_lightning.records import problem_from_record, problem_to_record, read_problems
from maxk_lightning.types import Problem, TestCase

GOOD: dict[str, Any] = {"id": "a", "prompt": "Add.", "tests": [{"input": "1 2\n", "output": "3\n"}]}


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("judged_by", [{"checker": "print(1)"}, {"function": "f"}])
def test_a_problem_survives_the_round_trip(judged_by: dict[str, str]) -> None:
    problem = Problem(
        id="x",
        prompt="p",
        tests=(TestCase(input='"é"', output="null"),),
        time_limit_s=1.5,
        memory_limit_mb=64,
        compare="exact",
        **judged_by,  # type: ignore[arg-type]
        metadata={"level": 3},
    )
    assert problem_from_record(json.loads(json.dumps(problem_to_record(problem)))) == problem


def test_blank_lines_do_not_shift_line_numbers(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", json.dumps(GOOD), "", "not json")
    with pytest.raises(ValueError, match=rf"{path}:3: not JSON"):
        read_problems(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "`id` must be str"),
        ({"id": " "}, "`id` is empty"),
        ({"prompt": 3}, "`prompt` must be str"),
        ({"tests": []}, "`tests` is empty"),
        ({"tests": {}}, "`tests` must be list"),
        ({"tests": ["1"]}, r"`tests\[0\]` must be an object"),
        ({"tests": [{"input": "1"}]}, r"`tests\[0\]`: `output` is missing"),
        ({"tests": [{"input": "1", "output": 1}]}, r"`tests\[0\]`: `output` must be str"),
        ({"compare": "fuzzy"}, "`compare` is 'fuzzy', must be one of tokens"),
        ({"compare": None}, "`compare` is None"),
        ({"time_limit_s": -1}, "`time_limit_s` must be a positive number"),
        ({"time_limit_s": True}, "`time_limit_s` must be a positive number"),
        ({"memory_limit_mb": "64"}, "`memory_limit_mb` must be a positive number"),
        ({"time_limit": 1}, "unknown key `time_limit`; did you mean `time_limit_s`"),
        ({"checkers": "1"}, "unknown key `checkers`; did you mean `checker`"),
        ({"prompt": []}, "`prompt` is empty"),
        ({"prompt": ["hello"]}, r"`prompt\[0\]` must be a message with `role` and `content`"),
        ({"prompt": [{"role": "user", "content": " "}]}, r"`prompt\[0\]` is empty"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "`prompt` ends with a message of role 'assistant'"),
        ({"metadata": 3}, "`metadata` must be dict"),
        (
            {"function": "f", "tests": [{"input": "1", "output": "True"}]},
            r"`tests\[0\]`: `output` is 'True', must be JSON, as true, null or \"text\" are",
        ),
    ],
)
def test_a_malformed_field_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = _write(tmp_path / "p.jsonl", json.dumps(GOOD), json.dumps(GOOD | {"id": "b"} | change))
    with pytest.raises(ValueError, match=rf"{path}:2: {reason}"):
        read_problems(path)


def test_a_question_needs_no_tests_and_other_keys_are_columns(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Count."}, {"role": "user", "content": "2+2?"}]
    path = _write(
        tmp_path / "p.jsonl",
        json.dumps({"prompt": "6*7?", "answer": 42, "level": "easy", "zzz": [1]}),
        json.dumps({"id": "b", "prompt": chat, "answer": "4"}),
        json.dumps({"prompt": "Which?", "answer": ["a", "b"]}),
    )
    first, second, third = read_problems(path)
    assert (first.id, first.prompt, first.answer) == ("1", "6*7?", "42")
    assert first.columns == {"answer": 42, "level": "easy", "zzz": [1]}
    assert (second.prompt, list(second.messages), second.answer) == ("2+2?", chat, "4")
    assert (third.answer, third.columns["answer"]) == (None, ["a", "b"])
    for problem in (first, second, third):
        assert problem_from_record(json.loads(json.dumps(problem_to_record(problem)))) == problem


def test_missing_empty_and_undecodable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_problems(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="no problem in this file"):
        read_problems(_write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_problems(tmp_path / "latin.jsonl")
    with pytest.raises(ValueError, match="must be a JSON object, not list"):
        read_problems(_write(tmp_path / "list.jsonl", "[1]"))


def test_a_repeated_id_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", json.dumps(GOOD), json.dumps(GOOD))
    with pytest.raises(ValueError, match=rf"{path}:2: id 'a' was used on line 1"):
        read_problems(path)
